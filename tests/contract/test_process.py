from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import SILICA, SILICON_NITRIDE, CompleteProcess, Process, Sellmeier, complete_process
from metaspec_contract.provenance import DataSource, Provenance
from metaspec_contract.validation import first_error

DOCUMENT: dict[str, Any] = Process().model_dump(mode="json")
OTHER = Process(period_um=1.6, wavelength_min_nm=450, wavelength_max_nm=750, wavelength_step_nm=2)


def source(name: str = "bayer", structures: int = 10) -> DataSource:
    return DataSource(name=name, schema_version=3, structures=structures, solver={"name": "fdtd"}, made_with="0.2.0")


def provenance(**fields: Any) -> Provenance:
    known: dict[str, Any] = {"process": Process(), "data": (source(),)}
    return Provenance(**known | fields)


def test_the_default_device() -> None:
    process = Process()
    np.testing.assert_array_equal(process.wavelengths_nm, np.arange(400, 701))
    assert process.pixel_nm == 15.625
    np.testing.assert_array_equal(OTHER.wavelengths_nm, np.arange(450, 751, 2))


def test_refractive_indices() -> None:
    wavelengths = np.array([587.6, 632.8])
    np.testing.assert_allclose(SILICA.index(wavelengths), [1.4585, 1.4570], atol=1e-4)  # Malitson, table 2
    np.testing.assert_allclose(SILICON_NITRIDE.index(wavelengths)[1], 2.0388, atol=1e-3)
    np.testing.assert_allclose(SILICA.permittivity(wavelengths), SILICA.index(wavelengths) ** 2)


@settings(deadline=None)
@example(first=300, steps=1, step=1 / 3)
@given(first=st.integers(300, 500), steps=st.integers(1, 3000), step=st.sampled_from([0.1, 0.3, 1.0, 2.5, 1 / 3]))
def test_wavelengths(first: int, steps: int, step: float) -> None:
    process = Process(wavelength_min_nm=first, wavelength_max_nm=first + steps * step, wavelength_step_nm=step)
    wavelengths = process.wavelengths_nm
    assert (wavelengths[0], wavelengths[-1]) == (process.wavelength_min_nm, process.wavelength_max_nm)
    np.testing.assert_allclose(np.diff(wavelengths), step, rtol=1e-6)
    assert complete_process(process.model_dump(mode="json")) == process
    assert Process.model_validate_json(process.model_dump_json()) == process


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tilt": 3}, "process.tilt: unknown field"),
        ({"forged\nline": 3}, r"process.forged\\nline: unknown field"),
        ({"period_um": -1}, "process.period_um: Input should be greater than 0, got -1"),
        ({"period_um": "wide"}, "process.period_um: Input should be a valid number, .*, got 'wide'"),
        ({"period_um": float("nan")}, "process.period_um: Input should be .*, got nan"),
        ({"thickness_um": float("inf")}, "process.thickness_um: Input should be a finite number, got inf"),
        ({"wavelength_max_nm": float("inf")}, "process.wavelength_max_nm: Input should be a finite number, got inf"),
        ({"distance_um": 10**400}, "process.distance_um: Input should be .*, got a value of type int"),
        ({"period_um": [2.0]}, "process.period_um: Input should be a valid number, got a value of type list"),
        (
            {"wavelength_step_nm": 7},
            "process: wavelength_max_nm must be a whole number of wavelength_step_nm above wavelength_min_nm, "
            "got 400.0, 700.0 and 7.0",
        ),
        ({"wavelength_max_nm": 300}, "process: wavelength_max_nm must be .* got 400.0, 300.0 and 1.0"),
        (
            {"wavelength_step_nm": 1e-9},
            "process: wavelength_step_nm must give at most 100000 wavelengths, got 1e-09 between 400.0 and 700.0",
        ),
        (
            {"solid": DOCUMENT["solid"] | {"strength": [1.0]}},
            "process.solid: strength has 1 terms but resonance_um has 2",
        ),
        ({"solid": "Si3N4"}, "process.solid: Input should be .*, got 'Si3N4'"),
        ({"pixels": 100}, "process.pixels: Input should be 64, 128 or 256, got 100"),
    ],
)
def test_processes_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        complete_process(DOCUMENT | fields)


@pytest.mark.parametrize("name", [name for name in Process.model_fields if name != "pixels"])
def test_a_document_must_state_every_field(name: str) -> None:
    partial = {key: value for key, value in DOCUMENT.items() if key != name}
    with pytest.raises(ValueError, match=f"^process must state {name}$"):
        complete_process(partial)
    with pytest.raises(ValueError, match=f"process must state {name}"):
        Provenance.model_validate({"process": partial, "data": [source()]})


def test_documents_from_before_there_were_other_pixels() -> None:
    before = {key: value for key, value in DOCUMENT.items() if key != "pixels"}
    assert complete_process(before) == complete_process(before | {"pixels": 128})
    assert complete_process(before).structure_shape == (128, 128)


@pytest.mark.parametrize("document", [None, 3, ["period_um"], "period_um"])
def test_a_document_that_is_no_object(document: Any) -> None:
    with pytest.raises(ValueError, match=f"^process must be an object with fields, .* {type(document).__name__}$"):
        complete_process(document)


def test_differences() -> None:
    assert Process().difference(Process()) == ""
    assert Process().difference(OTHER) == (
        "period_um 2.0 against 1.6, wavelength_min_nm 400.0 against 450.0, wavelength_max_nm 700.0 against 750.0, "
        "wavelength_step_nm 1.0 against 2.0"
    )
    renamed = SILICA.model_copy(update={"name": "silica", "source": "a handbook"})
    assert Process().difference(Process(substrate=renamed)) == ""
    vacuum = Sellmeier(name="vacuum", source="by definition", strength=(), resonance_um=())
    np.testing.assert_array_equal(vacuum.index(np.array([400.0, 700.0])), 1)
    assert Process(solid=vacuum).difference(Process()) == (
        "solid vacuum () () against Si3N4 (3.0249, 40314.0) (0.1353406, 1239.842)"
    )


def test_provenance_travels_as_json() -> None:
    sent = provenance(process=OTHER, merged_greens=True, preset="field", data=(source(), source("coarse", 20)))
    assert Provenance.model_validate(sent.model_dump(mode="json")) == sent
    assert Provenance.model_validate_json(sent.model_dump_json()) == sent


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": []}, "data: .* at least 1 item"),
        ({"channels": ("R", "G", "B")}, "channels must be R, G1, G2, B, got R, G, B"),
        ({"channels": CHANNELS[::-1]}, "channels must be R, G1, G2, B, got B, G2, G1, R"),
        ({"epochs": 3}, "epochs: unknown field"),
        ({"data": [source().model_dump() | {"structures": -1}]}, r"data\.0\.structures: .*, got -1"),
    ],
)
def test_provenance_that_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        provenance(**fields)
    assert re.match(message, first_error(caught.value))


def test_the_same_device() -> None:
    provenance().require_same_device(provenance(preset="fast", data=(source("coarse"),)), "fine", "coarse")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"process": Process(period_um=1.6)}, "fine and coarse are of different processes: period_um 2.0 against 1.6"),
        ({"merged_greens": True}, "coarse knows only the mean of G1 and G2, fine knows each of them"),
    ],
)
def test_another_device(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        provenance().require_same_device(provenance(**fields), "fine", "coarse")
    if "merged_greens" in fields:  # told from the other side, it is still the same one that knows less
        with pytest.raises(ValueError, match=f"^{message}$"):
            provenance(**fields).require_same_device(provenance(), "coarse", "fine")


class Document(BaseModel):
    name: str
    process: CompleteProcess


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"name": "x"}, "process: Field required"),
        ({"name": "x", "process": {}}, "process must state period_um, thickness_um, .*"),
        ({"name": "x", "process": DOCUMENT | {"tilt": 1}}, "process.tilt: unknown field"),
        ({"name": 1, "process": DOCUMENT}, "name: Input should be a valid string, got 1"),
        ({"name": 10**5000, "process": DOCUMENT}, "name: Input should be a valid string, got a value of type int"),
        ({"name": None, "process": DOCUMENT}, "name: Input should be a valid string, got None"),
        ({"name": "x", "process": "p" * 100}, "process: Input should be .*, got 'p{59}\\.\\.\\."),
        ([], "Input should be a valid dictionary .*, got a value of type list"),
    ],
)
def test_first_error(document: object, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Document.model_validate(document)
    assert re.fullmatch(message, first_error(caught.value))
