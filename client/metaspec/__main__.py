"""Entry point of the command `metaspec` and of `python -m metaspec`."""

import sys

from metaspec._version import __version__


def main() -> None:
    """Run the command."""
    if sys.argv[1:] == ["--version"]:  # at once
        print(f"metaspec {__version__}")
        raise SystemExit(0)
    from metaspec._cli.main import run_command

    run_command()


if __name__ == "__main__":
    main()
