"""Python imports this before the program: the server's process, and the one in which it runs its engine."""

from bei.engines.choice import ENGINES

ENGINES["native"] = "benchmarks.faulty_engine:FaultyEngine"
