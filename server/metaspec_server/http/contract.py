"""`GET /contract`: facts of the contract that a page or a program in another language needs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from metaspec_contract.detectors import BANDS_NM, CHANNELS, COLOUR_NAMES, COLOURS, DETECTORS, QUADRANTS, SPREAD
from metaspec_contract.model import DEFAULT_MODEL, gradient_model
from metaspec_contract.structures import PIXELS, packed_bytes
from metaspec_server.http.query import knows_query

__all__ = ["router"]

router = APIRouter(tags=["MetaSpec"], dependencies=[Depends(knows_query())])


class Colour(BaseModel):
    """A colour of the router."""

    name: Annotated[str, Field(description="name in English")]
    band_nm: Annotated[tuple[float, float], Field(description="band in nm; only the lower edge belongs to it")]
    detectors: Annotated[tuple[str, ...], Field(description="channels whose sum is the power of the colour")]


class Contract(BaseModel):
    """Facts that all models share, and the size of a structure of the default device."""

    pixels: Annotated[int, Field(description="pixels along each side of a structure of the default device")]
    packed_bytes: Annotated[int, Field(description="bytes of such a structure, bit-packed")]
    channels: Annotated[tuple[str, ...], Field(description="detectors, in the order of the spectra")]
    quadrants: Annotated[dict[str, tuple[int, int]], Field(description="row and column of each detector's quadrant")]
    spread: Annotated[str, Field(description="channel after the detectors of models over symmetric images")]
    colours: Annotated[dict[str, Colour], Field(description="colours, in the order of tables")]
    default_model: Annotated[str, Field(description="model that answers where no name is given")]
    gradient_suffix: Annotated[str, Field(description="end of the names of gradient models, after that of their model")]


_CONTRACT = Contract(
    pixels=PIXELS,
    packed_bytes=packed_bytes(),
    channels=CHANNELS,
    quadrants=QUADRANTS,
    spread=SPREAD,
    colours={
        colour: Colour(name=COLOUR_NAMES[colour], band_nm=BANDS_NM[colour], detectors=DETECTORS[colour])
        for colour in COLOURS
    },
    default_model=DEFAULT_MODEL,
    gradient_suffix=gradient_model(""),
)


@router.get("/contract")
async def contract() -> Contract:
    """Size of a structure, detectors and their quadrants, bands and detectors of the colours, and the default model."""
    return _CONTRACT
