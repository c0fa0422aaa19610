"""Limits of the MCP server: what one call of a tool may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Limits of one call of a tool, in numbers.

    Attributes:
        structures: structures of a prediction, a gradient or a verification.
        steps: steps of an optimisation.
        starts: starts of an optimisation.
        seconds: seconds that an optimisation or a verification computes before it answers as far as it came; the default
            leaves time to write designs before a client with the usual timeout of 60 s gives up.
        cells: grid cells per period of a verification.
        workers: processes of a verification.

    Raises:
        ValueError: a limit is not above 0.
    """

    structures: int = 64
    steps: int = 500
    starts: int = 16
    seconds: float = 45.0
    cells: int = 80
    workers: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"limit {field.name} must be above 0, got {getattr(self, field.name)}")

    @staticmethod
    def check(name: str, count: float, limit: float) -> None:
        """Refuse more than a limit.

        Raises:
            ValueError: the number is above the limit.
        """
        if count > limit:
            raise ValueError(f"{name} must be at most {limit:g}, the limit of this server, got {count:g}")
