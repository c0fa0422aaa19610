"""`python -m metaspec`, which is also the command `metaspec`."""

import sys


def main() -> None:
    """Entry point of the command; says which extra to install if the command line's packages are missing."""
    try:
        from metaspec._cli.main import run_command
    except ImportError as error:
        print(
            f'metaspec: the command line needs more packages: pip install "metaspec[optimise]" ({error})',
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    run_command()


if __name__ == "__main__":
    main()
