"""`python -m metaspec_export`."""

from metaspec_export.cli import main

if __name__ == "__main__":
    main()
