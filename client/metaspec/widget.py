"""A widget for notebooks: draw a structure, and see its spectra and the gradient of an objective. Needs anywidget.

from metaspec import Surrogate
from metaspec.widget import StructureWidget

widget = StructureWidget(Surrogate())
widget                                    # as the value of a cell: draw with the mouse
widget.structure, widget.spectra          # what was drawn, and its prediction
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import InvalidStructure
from metaspec._extras import missing_extra
from metaspec._source import check_source
from metaspec._structures import check_one_binary
from metaspec.objectives import NAMES, by_name
from metaspec_contract.detectors import BANDS_NM, COLOUR_NAMES, DETECTORS, QUADRANTS
from metaspec_contract.html import line_colour
from metaspec_contract.source import Evaluation, ObjectiveFunction, Source
from metaspec_contract.spectra import Spectra

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise missing_extra("metaspec.widget needs", "anywidget", "notebook") from error

__all__ = ["StructureWidget"]


def __dir__() -> list[str]:
    return __all__


_FOLDER = Path(__file__).parent / "_widget"


class StructureWidget(anywidget.AnyWidget):
    """A canvas of the pixels of a source, its spectra, and the gradient of an objective over the pixels.

    While the pen moves, one request at a time is under way, with the newest structure. Where the gradient is orange, solid
    raises the objective; where it is blue, void does. A failure is shown under the curves, and the next stroke tries again.

    Args:
        source: source of spectra and gradients: a `Surrogate`, the solver, or another one; not an `AsyncSurrogate`.
        structure: binary structure to start from, (y, x); empty by default.
        objectives: objectives to choose from, by name; those of `metaspec.objectives.by_name` by default.
        objective: name of the objective whose gradient is shown; "" for none.

    Attributes:
        structure: the structure, uint8 (y, x); setting it draws it.
        spectra: its spectra; None if the source failed.
        value: value of the objective; None without one.
        gradient: gradient of the objective, float32 (y, x); None without one.
        objective: name of the objective; setting it shows its gradient.

    Raises:
        InvalidStructure: the structure has other pixels than the source, or is not binary.
        SourceError: the source could not be described.
        ValueError: there is no such objective.
    """

    _esm = _FOLDER / "widget.js"
    _css = _FOLDER / "widget.css"

    facts: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)  # what the page needs to know of the source
    pixels = traitlets.CBytes().tag(sync=True)  # the structure, a byte each
    objective = traitlets.Unicode().tag(sync=True)
    serial = traitlets.Int().tag(sync=True)  # number of the page's last request
    answer: traitlets.Dict[str, Any] = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        source: Source,
        structure: ArrayLike | None = None,
        *,
        objectives: Mapping[str, ObjectiveFunction] | None = None,
        objective: str = "",
    ) -> None:
        check_source(source)
        self._source, self._info = source, source.metadata()
        self._objectives = {name: by_name(name) for name in NAMES} if objectives is None else dict(objectives)
        self.spectra: Spectra | None = None
        self.value: float | None = None
        self.gradient: NDArray[np.float32] | None = None
        self._answered: tuple[bytes, str, int] | None = None
        empty = np.zeros(self._info.pixels, np.uint8)
        pixels = self._checked(empty if structure is None else structure)
        super().__init__(facts=self._facts(), pixels=pixels, objective=objective)
        self.observe(self._changed, ["pixels", "objective", "serial"])
        self._changed()

    @property
    def structure(self) -> NDArray[np.uint8]:
        """The structure, uint8 (y, x), 1 is solid and 0 is void."""
        return np.frombuffer(self.pixels, np.uint8).reshape(self._info.pixels)

    @structure.setter
    def structure(self, structure: ArrayLike) -> None:
        self.pixels = self._checked(structure)

    def _checked(self, structure: ArrayLike) -> bytes:
        binary, pixels = check_one_binary(structure), self._info.pixels
        if binary.shape != pixels:
            raise InvalidStructure(f"structure must be {pixels[0]} x {pixels[1]} pixels, got {binary.shape}")
        return binary.tobytes()

    @traitlets.validate("objective")
    def _known(self, proposal: dict[str, Any]) -> str:
        name: str = proposal["value"]
        if name and name not in self._objectives:
            raise ValueError(f'objective must be one of {", ".join(self._objectives)}, or "", got {name!r}')
        return name

    def _facts(self) -> dict[str, Any]:
        info = self._info
        places = [{"name": c, "colour": line_colour(c), "place": QUADRANTS.get(c)} for c in info.channels]
        bands = [
            {"name": COLOUR_NAMES[colour], "colour": line_colour(DETECTORS[colour][0]), "band_nm": band}
            for colour, band in BANDS_NM.items()
        ]
        return {
            "pixels": info.pixels,
            "wavelengths_nm": info.wavelengths_nm.tolist(),
            "channels": places,
            "bands": bands,
            "objectives": list(self._objectives),
        }

    def _changed(self, change: object = None) -> None:
        """Answer for the present structure and objective, once."""
        asked = self.pixels, self.objective, self.serial
        if asked == self._answered:
            return  # several traits have changed together
        self._answered = asked
        try:
            found = self._computed()
        except Exception as error:  # also of a user's objective: shown where the user looks
            self.spectra = self.value = self.gradient = None
            self.answer = {"serial": self.serial, "failed": True, "message": f"{type(error).__name__}: {error}"}
            return
        spectra, value, gradient = found.spectra, found.value, found.gradient
        numbers = [
            (COLOUR_NAMES[colour], float(efficiency))
            for colour, efficiency in zip(spectra.colours, spectra.colour_efficiency(spectra.colours)[0], strict=True)
        ]
        self.spectra, self.value, self.gradient = spectra, None, None
        if self.objective:
            self.value, self.gradient = float(value[0]), gradient[0]
            numbers.append((self.objective, self.value))
        self.answer = {
            "serial": self.serial,
            "failed": False,
            "message": spectra.label,
            "numbers": numbers,
            "spectra": spectra.values[0].tobytes(),
            "gradient": None if self.gradient is None else self.gradient.tobytes(),
        }

    def _computed(self) -> Evaluation:
        if self.objective:
            return self._source.predict_and_gradient(self.structure, self._objectives[self.objective])
        return Evaluation(
            np.empty(0), np.empty((0, *self._info.pixels), np.float32), self._source.predict(self.structure)
        )
