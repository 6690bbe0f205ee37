"""`bei bench`: the throughput and the latency of servers that speak OpenAI's, TEI's, Cohere's or infinity's API."""
