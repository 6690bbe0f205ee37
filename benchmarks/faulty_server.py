"""`bei` with the engine of `benchmarks.faulty_engine` in place of the native one."""

from bei.cli import main
from bei.engines import ENGINES

ENGINES["native"] = "benchmarks.faulty_engine:FaultyEngine"

if __name__ == "__main__":
    main()
