"""The import path that versions before 0.3 had for `metaspec.layouts`."""

from metaspec.layouts import solid_polygons, write_gds
from metaspec_contract.layouts import check_layer

__all__ = ["check_layer", "solid_polygons", "write_gds"]


def __dir__() -> list[str]:
    return __all__
