"""`python -m metaspec_simulation` is `metaspec-simulate`."""

from metaspec_simulation.cli import main

if __name__ == "__main__":
    main()
