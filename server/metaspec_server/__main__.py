"""`python -m metaspec_server`: the command `metaspec-serve`."""

from metaspec_server.ops.cli import main

if __name__ == "__main__":
    main()
