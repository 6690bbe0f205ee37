"""`bei eval`: the quality of a model on STS-B, on tasks of mteb, and in this precision against fp32 on one's own
texts."""
