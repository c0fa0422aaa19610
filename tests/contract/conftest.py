"""Whole documents of a small run."""

from __future__ import annotations

from typing import Any

import pytest

from metaspec_contract.detectors import CHANNELS, COLOURS
from metaspec_contract.process import Process

Document = dict[str, Any]


def merit(**more: object) -> Document:
    by_colour = dict.fromkeys(COLOURS, 0.5)
    return {"min_efficiency": 0.5, "colour_efficiency": by_colour, "crosstalk": by_colour, **more}


@pytest.fixture
def report() -> Document:
    """A `report.json` of two designs."""
    names = {"structure": "npy", "layout": "gds", "picture": "png"}
    return {
        "schema_version": 1,
        "url": "http://127.0.0.1:8000",
        "model": "diffractionnet",
        "model_version": "7",
        "objective": "bayer",
        "settings": {"steps": 40, "beta": [8, 16.5], "constraints": {"width_nm": None}},
        "process": Process().model_dump(mode="json"),
        "period_um": 2.0,
        "pixel_nm": 15.625,
        "wavelengths_nm": list(range(400, 701, 5)),
        "channels": list(CHANNELS),
        "merged_greens": False,
        "seed": None,
        "wall_s": 12.5,
        "server_calls": 40,
        "structures_evaluated": 320,
        "designs": [
            {
                "rank": rank,
                "start": 3,
                "step": 39,
                "objective": 0.5,
                "predicted": merit(spread=None),
                "solid_nm": 62.5,
                "void_nm": 78.125,
                "files": {name: f"design_00{rank}.{ending}" for name, ending in names.items()}
                | {"spectra": f"spectra_00{rank}.png"},
            }
            for rank in range(2)
        ],
    }


@pytest.fixture
def verified() -> Document:
    """A `verify.json` of one design on two grids."""
    return {
        "schema_version": 1,
        "model": "diffractionnet",
        "model_version": "7",
        "objective": "bayer",
        "solver": {"name": "fdtd", "version": "0.2.0", "cells_per_period": [48, 80]},
        "process": Process().model_dump(mode="json"),
        "summary": {"mae": 0.01, "best_predicted": 0, "best_simulated": 0},
        "designs": [
            {
                "rank": 0,
                "predicted": merit(),
                "simulated": {
                    cells: merit(energy_error=0.001, file=f"simulated/{cells}.npy") for cells in ("48", "80")
                },
                "mae": 0.01,
                "rms": 0.02,
                "grid_difference_rms": 0.005,
            }
        ],
    }
