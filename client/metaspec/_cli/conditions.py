"""`--condition` and `--free`: values at which a model is used, beside the structures, and bounds of those that are varied."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Annotated

import typer

ConditionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        help="Value of a condition of the model, such as distance_um=1.25; of a vector incidence=3,-4.5. Repeatable.  "
        "[default: the model's]",
        metavar="NAME=VALUE",
    ),
]
Distance = Annotated[
    float | None,
    typer.Option(help="Distance of the detectors in um, if the model takes it: --condition distance_um=..."),
]

FreeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--free",
        help="Vary a condition of the model with the structure, between bounds, such as distance_um:1.0:3.0: each start has "
        "its own value. Repeatable.",
        metavar="NAME:LOW:HIGH",
    ),
]

_DISTANCE = "distance_um"


def read_conditions(given: Sequence[str] | None, distance_um: float | None) -> dict[str, float | list[float]]:
    """Values of conditions by name, as JSON: a float, or a list of them for a vector.

    Args:
        given: texts of `--condition`.
        distance_um: value of `--distance-um`.

    Raises:
        ValueError: a text is not NAME=VALUE, or a name is given twice.
    """
    values: dict[str, float | list[float]] = {}
    if distance_um is not None:
        values[_DISTANCE] = _numbers([str(distance_um)], f"--distance-um {distance_um}")
    for text in given or ():
        name, separator, value = text.partition("=")
        if not separator or not name.strip():
            raise ValueError(f"--condition must be NAME=VALUE, such as distance_um=1.25, got {text!r}")
        if name.strip() in values:
            raise ValueError(f"--condition {name.strip()} is given twice")
        values[name.strip()] = _numbers(value.split(","), f"--condition {text}")
    return values


def read_free(given: Sequence[str] | None, fixed: Container[str]) -> dict[str, tuple[float, float]]:
    """Bounds of free conditions, by name.

    Args:
        given: texts of `--free`.
        fixed: names of the conditions that have a value.

    Raises:
        ValueError: a text is not NAME:LOW:HIGH with two numbers that ascend, a name is given twice, or is fixed, too.
    """
    free: dict[str, tuple[float, float]] = {}
    for text in given or ():
        name, *bounds = (part.strip() for part in text.split(":"))
        try:
            low, high = map(float, bounds)
        except ValueError:
            low = high = math.nan
        if not name or not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"--free must be NAME:LOW:HIGH, such as distance_um:1.0:3.0, got {text!r}")
        if not low < high:
            raise ValueError(f"--free {name}: bounds must ascend, got {low:g} and {high:g}")
        if name in free:
            raise ValueError(f"--free {name} is given twice")
        if name in fixed:
            raise ValueError(f"--free {name}: it has a fixed value, too: leave out one of the two")
        free[name] = low, high
    return free


def _numbers(texts: Sequence[str], option: str) -> float | list[float]:
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise ValueError(f"{option}: must be a number, or numbers with commas between them") from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{option}: must be finite")
    return numbers[0] if len(numbers) == 1 else numbers
