"""OpenAI's Batch API: files of requests in, files of answers out, behind live requests; a killed job goes on."""
