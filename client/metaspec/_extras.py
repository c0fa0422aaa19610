"""The error for a package of an optional extra that is not installed."""

from __future__ import annotations


def missing_extra(what: str, package: str, extra: str) -> ImportError:
    """An ImportError whose one line says which extra to install.

    Args:
        what: feature and verb, such as "layouts need".
        package: name of the missing package.
        extra: extra of this package that has it.
    """
    return ImportError(f'{what} {package}: pip install "metaspec[{extra}]"', name=package)
