from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from metaspec_contract.process import Process
from metaspec_contract.run_folder import REPORT, Merit, RunReport, VerifyReport, read_report
from metaspec_contract.validation import first_error

Document = dict[str, Any]


@pytest.fixture
def write(tmp_path: Path, report: Document) -> Callable[..., Path]:
    def write_report(**changes: object) -> Path:
        (tmp_path / REPORT).write_text(json.dumps(report | changes))
        return tmp_path

    return write_report


def test_reading(write: Callable[..., Path], report: Document) -> None:
    found = read_report(write())
    assert isinstance(found, RunReport)
    assert found.process == Process()
    assert found.model_dump(mode="json", exclude_unset=True) == report
    assert read_report(write(channels=["spread", "B", "G2", "R", "G1"])).channels[0] == "spread"


def test_figures_of_merit_of_spectra() -> None:
    values = np.zeros((5, 301), np.float32)
    values[[0, 2, 3]] = [[0.25], [0.125], [0.5]]
    channels = ("B", "spread", "G1", "R", "G2")
    merit = Merit.of(values, np.arange(400.0, 701), channels, spread=0.5)
    assert merit.model_dump(exclude_none=True) == {
        "min_efficiency": 0.125,
        "colour_efficiency": {"R": 0.5, "G": 0.125, "B": 0.25},
        "crosstalk": {"R": 0.5, "G": 0.125, "B": 0.25},
        "spread": 0.5,
    }
    merit = Merit.of(values, np.arange(600.0, 901), channels)  # only red is reached
    only_red = {"colour_efficiency": {"R": 0.5}, "crosstalk": {}}
    assert merit.model_dump(exclude_none=True) == only_red
    assert Merit.model_validate(only_red) == merit


def test_another_device(write: Callable[..., Path]) -> None:
    process = Process(period_um=1.6)
    for named in ({"tilt": 3}, None, Process(period_um=3).model_dump()):
        found = read_report(write(process=named), process)
        assert found.process == process
        assert found.period_um == 1.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema_version: Input should be 1, got 2"),
        ({"author": "me"}, "author: unknown field"),
        ({"designs": []}, "designs: .* at least 1 item .*"),
        ({"designs": [{"start": 0}]}, "designs.0.rank: Field required"),
        ({"process": {"tilt": 3}}, "process must state period_um, .*"),
        ({"process": Process().model_dump() | {"tilt": 3}}, "process.tilt: unknown field"),
        ({"process": None}, "process: Input should be .*, got None"),
        ({"period_um": 1.6}, "period_um is 1.6, but that of the process is 2.0"),
        ({"channels": ["R", "G1", "G1", "B"]}, r"channels must name each of G1, G2 once, got \['R', 'G1', 'G1', 'B'\]"),
        ({"wavelengths_nm": [400, 399]}, "wavelengths_nm must ascend, got 399 after 400"),
        ({"wavelengths_nm": [400, 405, 405]}, "wavelengths_nm must ascend, got 405 after 405"),
        ({"wavelengths_nm": [400, float("nan")]}, "wavelengths_nm.1: Input should be a finite number, got nan"),
        ({"wall_s": float("inf")}, "wall_s: Input should be a finite number, got inf"),
    ],
)
def test_reports_that_are_refused(write: Callable[..., Path], changes: Document, message: str) -> None:
    folder = write(**changes)
    with pytest.raises(ValueError, match=r"report\.json") as caught:
        read_report(folder)
    assert re.fullmatch(f"{re.escape(str(folder / REPORT))}: {message}", str(caught.value))


def with_conditions(report: Document, *own: object) -> list[Document]:
    """The designs of a report, with conditions of their own."""
    return [{**design, "conditions": one} for design, one in zip(report["designs"], own, strict=True)]


def test_designs_with_conditions_of_their_own(write: Callable[..., Path], report: Document) -> None:
    own = with_conditions(report, {"distance_um": 1.25, "angle": 3.5}, {"distance_um": 2.0, "angle": -1.0})
    found = read_report(write(designs=own, conditions={"incidence": [3.0, 4.0]}))
    first, second = found.designs
    assert found.conditions_of(first) == {"incidence": [3.0, 4.0], "distance_um": 1.25, "angle": 3.5}
    assert (found.process_of(first), found.process_of(second)) == (Process(distance_um=1.25), Process(distance_um=2))
    plain = read_report(write())
    assert plain.process_of(plain.designs[0]) is plain.process
    assert plain.conditions_of(plain.designs[0]) == {}


@pytest.mark.parametrize(
    ("own", "conditions", "message"),
    [
        (({"a": 1}, {"b": 1}), {}, r"designs\.1\.conditions must have the names of designs\.0, \['a'\], got \['b'\]"),
        (({"a": 1}, None), {}, r"designs\.1\.conditions must have the names of designs\.0, \['a'\], got \[\]"),
        (({"a": 1}, {"a": 2}), {"a": 3}, "conditions must not be those of single designs, too, got a in both"),
        (({"a": 1}, {"a": "2 um"}), {}, r"designs\.1\.conditions\.a: Input should be a valid number, .*"),
        (
            ({"distance_um": 1}, {"distance_um": -1}),
            {},
            r"designs\.1\.conditions\.distance_um: .* greater than 0, got -1.*",
        ),
    ],
)
def test_conditions_of_designs_that_are_refused(
    write: Callable[..., Path], report: Document, own: tuple[object, object], conditions: Document, message: str
) -> None:
    folder = write(designs=with_conditions(report, *own), conditions=conditions)
    with pytest.raises(ValueError, match=rf"report\.json: {message}$"):
        read_report(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "is not a text file: "),
        (b"{", "is not JSON: "),
        (b"[" * 100_000, "is not JSON: "),
        (b"9" * 5000, "is not JSON: "),
        (b"[]", ": Input should be a valid dictionary .*"),
        (None, "is missing: give a folder that `metaspec optimise` has finished"),
    ],
)
def test_files_that_are_not_reports(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / REPORT).write_bytes(content)
    for process in (None, Process()):
        with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path / REPORT))} ?{message}"):
            read_report(tmp_path, process)


def test_a_report_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / REPORT).mkdir()
    with pytest.raises(ValueError, match=r"report\.json cannot be read: Is a directory$"):
        read_report(tmp_path)


def test_verify_reports(verified: Document) -> None:
    found = VerifyReport.model_validate_json(json.dumps(verified))
    assert set(found.designs[0].simulated) == {"48", "80"}
    with pytest.raises(ValidationError) as caught:
        VerifyReport.model_validate(verified | {"process": {}})
    assert first_error(caught.value).startswith("process must state period_um, ")
