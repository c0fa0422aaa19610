"""Links to the page of a server that hold a structure: its bits, compressed, in the part of the address that is not sent."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from metaspec_contract.structures import Structure, pack

_RAW = -15  # DEFLATE without a head (RFC 1951), as browsers read it


def structure_link(
    url: str, structure: Structure, model: str, conditions: Mapping[str, float | Sequence[float]] | None = None
) -> str | None:
    """Link that opens a structure on the page of a server.

    Args:
        url: URL of the server.
        structure: binary structure (y, x).
        model: name of the model whose spectra the page shows.
        conditions: values of its conditions, by name; defaults for the others.

    Returns:
        The link; None for a server that is not reached by HTTP, and so has no page.
    """
    if not url.startswith(("http://", "https://")):
        return None
    packing = zlib.compressobj(9, zlib.DEFLATED, _RAW)
    bits = packing.compress(pack(structure).tobytes()) + packing.flush()
    packed = base64.urlsafe_b64encode(bits).decode().rstrip("=")
    at = "".join(f"&{name}={_listed(value)}" for name, value in (conditions or {}).items())
    return f"{url.rstrip('/')}/?model={quote(model)}{at}#structure={packed}"


def _listed(value: float | Sequence[float]) -> str:
    return repr(float(value)) if isinstance(value, int | float) else ",".join(repr(float(one)) for one in value)
