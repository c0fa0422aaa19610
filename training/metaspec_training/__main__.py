"""`python -m metaspec_training` is `metaspec-train`."""

from metaspec_training.cli import main

if __name__ == "__main__":
    main()
