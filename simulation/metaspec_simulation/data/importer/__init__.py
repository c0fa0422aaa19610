"""Import of simulations made elsewhere: pairs of `.npy` files become a data set like those that MetaSpec makes.

`files` reads the raw files in MetaSpec's convention, `checks` judges every row, `report` says what came of them, `orientation`
compares some with the solver, `write` makes the data set. Files are memory-mapped and read in blocks, twice: to be checked,
and to be written. Memory use does not grow with them, but for some 20 bytes a row. Nothing in them is ever unpickled.
"""

from metaspec_simulation.data.importer.files import Axes, Convention, Pair, find_pairs, read_order
from metaspec_simulation.data.importer.orientation import require_orientation
from metaspec_simulation.data.importer.report import MAX_DROPPED, ImportReport
from metaspec_simulation.data.importer.write import (
    PICTURE,
    REPORT,
    check_pairs,
    import_pairs,
    require_free,
    some_samples,
    write_pairs,
)

__all__ = [
    "MAX_DROPPED",
    "PICTURE",
    "REPORT",
    "Axes",
    "Convention",
    "ImportReport",
    "Pair",
    "check_pairs",
    "find_pairs",
    "import_pairs",
    "read_order",
    "require_free",
    "require_orientation",
    "some_samples",
    "write_pairs",
]
