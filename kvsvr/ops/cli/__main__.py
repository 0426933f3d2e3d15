"""`python -m kvsvr.ops.cli` is `kvsvr`, by the Python that is asked: how the launcher starts replicas."""

from kvsvr.ops.cli import main

if __name__ == "__main__":
    main()
