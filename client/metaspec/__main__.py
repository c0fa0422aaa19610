"""Entry point of the command `metaspec` and of `python -m metaspec`."""

import sys

from metaspec._version import __version__


def main() -> None:
    """Run the command; without the extra "optimise", say in one line how to install it."""
    if sys.argv[1:] == ["--version"]:  # works without any extra
        print(f"metaspec {__version__}")
        raise SystemExit(0)
    try:
        from metaspec._cli.main import run_command
    except ImportError as error:
        if (error.name or "metaspec").partition(".")[0] in ("metaspec", "metaspec_contract"):
            raise  # a fault of this package, not a missing extra
        line = f'the command line needs {error.name}: pip install "metaspec[optimise]"'
        print(f"metaspec: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    run_command()


if __name__ == "__main__":
    main()
