"""Process: geometry, materials and wavelengths of a device, as one value.

The default is the Bayer colour router of Zou et al., "Pixel-level Bayer-type colour router based on metasurfaces",
Nature Communications 13, 3288 (2022), as posed by the `bayer_sorter` challenge of the public package invrs-gym, with
thickness and detector distance fixed. Lengths are in micrometres and wavelengths in nanometres throughout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from metaspec_contract.validation import first_error

_MOST_WAVELENGTHS = 100_000  # more come from a mistyped step, or are meant to exhaust the reader's memory


class Sellmeier(BaseModel):
    """A material's refractive index, n^2 = 1 + sum_i B_i L^2 / (L^2 - C_i^2), with L the wavelength in um.

    Attributes:
        name: name of the material.
        source: publication of the coefficients.
        strength: B_i, dimensionless.
        resonance_um: C_i in um.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    strength: tuple[FiniteFloat, ...]
    resonance_um: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _as_many_of_each(self) -> Self:
        if len(self.strength) != len(self.resonance_um):
            raise ValueError(f"strength has {len(self.strength)} terms but resonance_um has {len(self.resonance_um)}")
        return self

    def permittivity(self, wavelength_nm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Relative permittivity n^2 at vacuum wavelengths in nm, of the same shape."""
        squared = (np.asarray(wavelength_nm, np.float64) / 1000) ** 2
        terms = (b * squared / (squared - c**2) for b, c in zip(self.strength, self.resonance_um, strict=True))
        return 1 + sum(terms, np.zeros_like(squared))

    def index(self, wavelength_nm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Refractive index n at vacuum wavelengths in nm, of the same shape."""
        return np.sqrt(self.permittivity(wavelength_nm))


SILICON_NITRIDE = Sellmeier(
    name="Si3N4",
    source="Luke et al., Opt. Lett. 40, 4823 (2015)",
    strength=(3.0249, 40314.0),
    resonance_um=(0.1353406, 1239.842),
)
SILICA = Sellmeier(
    name="SiO2",
    source="Malitson, J. Opt. Soc. Am. 55, 1205 (1965)",
    strength=(0.6961663, 0.4079426, 0.8974794),
    resonance_um=(0.0684043, 0.1162414, 9.896161),
)


class Process(BaseModel):
    """Device that all structures of a data set, and all models trained on it, share.

    Light is incident from vacuum, normally, on a patterned layer (solid in vacuum) on a semi-infinite substrate. Below the
    layer, inside the substrate, four quadrants of the unit cell collect the light.

    Attributes:
        period_um: side of the square unit cell in um.
        thickness_um: height of the patterned layer in um.
        distance_um: distance from the bottom of the patterned layer to the detector plane in um.
        solid: material of the pixels with value 1; void is vacuum.
        substrate: material below the pattern.
        wavelength_min_nm: first wavelength of the spectra in nm.
        wavelength_max_nm: last wavelength of the spectra in nm.
        wavelength_step_nm: spacing of the wavelengths in nm.
        pixels: pixels along each side of a structure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    period_um: FiniteFloat = Field(default=2.0, gt=0)
    thickness_um: FiniteFloat = Field(default=0.6, gt=0)
    distance_um: FiniteFloat = Field(default=2.5, gt=0)
    solid: Sellmeier = SILICON_NITRIDE
    substrate: Sellmeier = SILICA
    wavelength_min_nm: FiniteFloat = Field(default=400.0, gt=0)
    wavelength_max_nm: FiniteFloat = Field(default=700.0, gt=0)
    wavelength_step_nm: FiniteFloat = Field(default=1.0, gt=0)
    pixels: Literal[64, 128, 256] = 128

    @model_validator(mode="after")
    def _whole_number_of_steps(self) -> Self:
        steps = (self.wavelength_max_nm - self.wavelength_min_nm) / self.wavelength_step_nm
        if steps >= _MOST_WAVELENGTHS:
            raise ValueError(
                f"wavelength_step_nm must give at most {_MOST_WAVELENGTHS} wavelengths, got {self.wavelength_step_nm} "
                f"between {self.wavelength_min_nm} and {self.wavelength_max_nm}"
            )
        if round(steps) < 1 or abs(steps - round(steps)) > 1e-6:  # nearly whole: a step of 1/3 has been rounded
            raise ValueError(
                "wavelength_max_nm must be a whole number of wavelength_step_nm above wavelength_min_nm, "
                f"got {self.wavelength_min_nm}, {self.wavelength_max_nm} and {self.wavelength_step_nm}"
            )
        return self

    @property
    def wavelengths_nm(self) -> NDArray[np.float64]:
        """Vacuum wavelengths of the spectra in nm, ascending."""
        count = round((self.wavelength_max_nm - self.wavelength_min_nm) / self.wavelength_step_nm) + 1
        return np.linspace(self.wavelength_min_nm, self.wavelength_max_nm, count)

    @property
    def pixel_nm(self) -> float:
        """Width of a pixel of a structure in nm."""
        return 1000 * self.period_um / self.pixels

    @property
    def structure_shape(self) -> tuple[int, int]:
        """Rows and columns of a structure."""
        return self.pixels, self.pixels

    def at(self, conditions: Mapping[str, object]) -> Self:
        """The device at values of conditions: those that have the name of a field replace it, the others do not count.

        Raises:
            ValueError: a value is none of its field.

        Example:
            >>> Process().at({"distance_um": 1.25, "incidence": 3.0}).distance_um
            1.25
        """
        changed = {name: value for name, value in conditions.items() if name in type(self).model_fields}
        return type(self).model_validate(self.model_dump() | changed) if changed else self

    def difference(self, other: Process) -> str:
        """Physical differences from another process, field by field: "period_um 2.0 against 1.6"; "" if there are none.

        Materials are compared by their coefficients; names and sources do not count.
        """
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in Process.model_fields]
        return ", ".join(
            f"{name} {_short(ours)} against {_short(theirs)}"
            for name, ours, theirs in pairs
            if _physical(ours) != _physical(theirs)
        )


def _physical(value: float | Sellmeier) -> object:
    return (value.strength, value.resonance_um) if isinstance(value, Sellmeier) else value


def _short(value: float | Sellmeier) -> object:
    return f"{value.name} {value.strength} {value.resonance_um}" if isinstance(value, Sellmeier) else value


LATER = ("pixels",)
"""Fields that documents from before version 0.3 do not have: these are of processes that have the default."""


def complete_process(document: Mapping[str, Any]) -> Process:
    """Read a process from a document that must state every field: no default stands in for a missing one.

    Only the fields `LATER` may be missing.

    Raises:
        ValueError: a field is missing, unknown or out of range; the field is named.
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"process must be an object with fields, got a value of type {type(document).__name__}")
    if missing := [name for name in Process.model_fields if name not in document and name not in LATER]:
        raise ValueError(f"process must state {', '.join(missing)}")
    try:
        return Process.model_validate(document)
    except ValidationError as error:
        reason = first_error(error)
        raise ValueError(f"process.{reason}" if error.errors()[0]["loc"] else f"process: {reason}") from None


def read_process(path: Path) -> Process:
    """Read a process from a JSON file with the fields that differ from the default process.

    Raises:
        ValueError: the file is not a JSON object, or a field is unknown or out of range; file and field are named.
        OSError: the file cannot be read.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"expected a JSON object with fields of the process, got {type(fields).__name__}")
        return complete_process(Process().model_dump(mode="json") | fields)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None


CompleteProcess = Annotated[
    Process, BeforeValidator(lambda value: complete_process(value) if isinstance(value, Mapping) else value)
]
"""Type of a pydantic field that holds a process: documents must state all of it, as for `complete_process`."""
