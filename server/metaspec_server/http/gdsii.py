"""Layouts: `POST /gdsii/read`, a layout as a structure, and `POST /gdsii/write`, a structure as a layout. Both need gdstk."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import tempfile
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response

from metaspec_contract.layout_writing import exact_unit_um, pixel_outlines, write_outlines
from metaspec_contract.layouts import SOLID_LAYER, parse_layer
from metaspec_contract.model import DEFAULT_MODEL
from metaspec_contract.process import Process
from metaspec_contract.structures import Structure, check_binary, unpack
from metaspec_server.core.errors import TooManyStructures
from metaspec_server.core.service import Service
from metaspec_server.core.tensors import is_packed
from metaspec_server.core.threads import SMALL, off_loop
from metaspec_server.http.disconnect import cancel_on_disconnect
from metaspec_server.http.openapi import GDSII_ANSWERS, READ_GDSII_BODY, WRITE_GDSII_BODY
from metaspec_server.http.problems import Problem
from metaspec_server.http.query import knows_query
from metaspec_server.http.request_body import RequestBody
from metaspec_server.http.rest import content_type_of
from metaspec_server.http.rest_body import read_body
from metaspec_server.http.rest_codec import NPY, RAW, Form, InvalidBody

__all__ = ["router"]

_LARGEST = 4 * 2**20  # bytes of a layout
_SECONDS = 20.0  # to read one; those of real cells take one
_READERS = 2  # at a time
_LONGEST_NAME = 200  # characters of the name of a cell
_LAYER = f"{SOLID_LAYER[0]}/{SOLID_LAYER[1]}"

router = APIRouter(tags=["Layouts"], dependencies=[Depends(knows_query("model", "cell", "layer"))])
_reading = asyncio.Semaphore(_READERS)

Model = Annotated[str, Query(description="name of the model whose device the layout is one of")]
Cell = Annotated[
    str | None, Query(max_length=_LONGEST_NAME, description="name of the cell; of several, it has to be named")
]
LayerText = Annotated[str, Query(description="layer and datatype of the solid, LAYER/DATATYPE")]


@router.post("/gdsii/read", openapi_extra=READ_GDSII_BODY, responses=GDSII_ANSWERS, response_class=Response)
async def read(
    request: Request, model: Model = DEFAULT_MODEL, cell: Cell = None, layer: LayerText = _LAYER
) -> Response:
    """The structure of a GDSII layout: a `.npy` file of densities (y, x), the share of each pixel that is solid.

    One cell and layer is read, with all references; of an array of unit cells one is taken. The period must be that of the
    model's device. See `docs/layouts.md` for what a layout must be.
    """
    numbers = _layer(layer)
    service: Service = request.app.state.service
    with service.registry.lease(model) as served, service.memory.lease() as memory:
        if content_type_of(request) != RAW:
            raise Problem(415, f"Content-Type must be {RAW}")
        body = RequestBody(request, service.settings, memory)
        content = bytes(await body.read(_LARGEST + 1))
        if len(content) > _LARGEST:
            raise Problem(413, f"the layout is larger than {_LARGEST} bytes: send the unit cell alone")
        _require_gdstk()
        process = served.about.metadata.process
        head = {"process": process.model_dump(mode="json"), "cell": cell, "layer": numbers}
        asked = json.dumps(head).encode() + b"\n" + content
        return Response(await cancel_on_disconnect(request, _read_apart(asked)), media_type=NPY)


@router.post("/gdsii/write", openapi_extra=WRITE_GDSII_BODY, responses=GDSII_ANSWERS, response_class=Response)
async def write(
    request: Request, model: Model = DEFAULT_MODEL, cell: Cell = None, layer: LayerText = _LAYER
) -> Response:
    """A binary structure as a GDSII layout: its exact pixels, merged, with the outline of the unit cell.

    The body is that of `/predict`, with one structure. Equal structures yield identical files.
    """
    numbers = _layer(layer)
    service: Service = request.app.state.service
    with service.registry.lease(model) as served, service.memory.lease() as memory:
        raw = RequestBody(request, service.settings, memory)
        body = await read_body(raw, content_type_of(request), Form(served.structure, None, service.limit))
        if len(body.structures) != 1:
            raise TooManyStructures(len(body.structures), 1)
        pixels = served.structure.pixels
        if is_packed(body.structures, served.structure):
            solid = unpack(body.structures, pixels)[0]
        else:
            solid = check_binary(body.structures, pixels)[0]
        _require_gdstk()
        device = Process.model_validate(served.about.metadata.process.model_dump())
        try:
            content = await off_loop(SMALL + 1, _written, solid, device.period_um, cell or "ROUTER", numbers)
        except ValueError as error:
            raise InvalidBody("layer", str(error)) from None
    return Response(content, media_type=RAW, headers={"Content-Disposition": 'attachment; filename="structure.gds"'})


def _layer(text: str) -> tuple[int, int]:
    try:
        return parse_layer(text, "layer")
    except ValueError as error:
        raise Problem(422, str(error)[:_LONGEST_NAME], field="layer") from None


def _require_gdstk() -> None:
    if importlib.util.find_spec("gdstk") is None:
        raise Problem(501, 'layouts need gdstk where the server runs: pip install "metaspec-server[layouts]"')


async def _read_apart(asked: bytes) -> bytes:
    """What a process of its own answers; it is killed when it takes too long, or when nobody waits for it.

    Raises:
        InvalidBody: the layout cannot be read, or not within the time.
    """
    async with _reading:
        reader = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "metaspec_server.layout_reading", stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        try:
            async with asyncio.timeout(_SECONDS):
                answer, complaint = await reader.communicate(asked)
        except TimeoutError:
            raise InvalidBody(
                "body", f"the layout takes longer than {_SECONDS:g} s to read: merge its polygons"
            ) from None
        finally:
            if reader.returncode is None:
                reader.kill()
                await reader.wait()
    if reader.returncode == 1 and (lines := complaint.decode(errors="replace").strip().splitlines()):
        raise InvalidBody("body", lines[-1])
    if reader.returncode != 0:
        raise InvalidBody("body", "the layout cannot be read: it needs more memory than a layout may")
    return answer


def _written(solid: Structure, period_um: float, cell: str, layer: tuple[int, int]) -> bytes:
    outlines = pixel_outlines(np.ascontiguousarray(solid), period_um, exact_unit_um(period_um, len(solid)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "structure.gds"
        write_outlines(path, outlines, layer=layer, cell=cell)
        return path.read_bytes()
