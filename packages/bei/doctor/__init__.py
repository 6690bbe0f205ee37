"""`bei doctor`: the machine, the engine that would serve and why, the missing parts with their remedies, the caches."""
