"""`python -m metaspec_server`, which is also the command `metaspec-serve`."""

from metaspec_server.ops.cli import main

if __name__ == "__main__":
    main()
