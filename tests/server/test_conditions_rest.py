"""Conditions at `/predict` and `/gradient`: in the query, as fields of JSON, as arrays of `.npy` bodies; what is refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from metaspec_testing.direct import Direct
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array

JSON, NPY, RAW = "application/json", "application/x-npy", "application/octet-stream"


@pytest.fixture
def http(conditioned: RunningServer) -> Iterator[httpx.Client]:
    with conditioned.client() as client:
        yield client


@pytest.fixture
def cotangent(structures: Array) -> Array:
    return np.random.default_rng(3).standard_normal((len(structures), 4, 301), np.float32)


def npy(*arrays: Any) -> bytes:
    buffer = io.BytesIO()
    for array in arrays:
        np.save(buffer, array)
    return buffer.getvalue()


def loaded(answer: httpx.Response) -> list[Array]:
    file, arrays = io.BytesIO(answer.raise_for_status().content), []
    while file.tell() < len(answer.content):
        arrays.append(np.load(file))
    return arrays


def post(http: httpx.Client, path: str, content: bytes, content_type: str, accept: str = NPY) -> httpx.Response:
    return http.post(path, content=content, headers={"Content-Type": content_type, "Accept": accept})


def packed(structures: Array) -> bytes:
    return np.packbits(structures, axis=None).tobytes()


DISTANCES, INCIDENCES = [1.0, 1.25, 2.5, 2.75, 3.0], [[0, 0], [10, -5], [-20, 20], [1.5, 1e-3], [3, 4]]
BOTH: dict[str, Any] = {"distance_um": DISTANCES, "incidence": INCIDENCES}
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("", {}, {}),
    ("?distance_um=1.25", {}, {"distance_um": 1.25}),
    ("?distance_um=1.25&priority=1&model=diffractionnet&version=1", {}, {"distance_um": 1.25}),
    ("?distance_um=1.25e0&incidence=10,-5", {}, {"distance_um": 1.25, "incidence": [10, -5]}),
    ("", {"distance_um": 3}, {"distance_um": 3}),
    ("", {"distance_um": DISTANCES}, {"distance_um": DISTANCES}),
    ("", {"distance_um": [[one] for one in DISTANCES]}, {"distance_um": DISTANCES}),
    ("", {"incidence": [10, -5]}, {"incidence": [10, -5]}),
    ("?incidence=10,-5", {"distance_um": DISTANCES}, {"distance_um": DISTANCES, "incidence": [10, -5]}),
    ("", BOTH, BOTH),
    ("", {"distance_um": None}, {}),
]


@pytest.mark.parametrize(("query", "fields", "given"), CASES)
def test_in_the_query_and_in_json(
    http: httpx.Client,
    direct: Direct,
    structures: Array,
    cotangent: Array,
    query: str,
    fields: dict[str, Any],
    given: dict[str, Any],
) -> None:
    body = {"packed": base64.b64encode(packed(structures)).decode(), **fields}
    answer = http.post(f"/predict{query}", json=body).raise_for_status().json()
    np.testing.assert_allclose(np.float32(answer["spectra"]), direct.spectra(structures, **given), atol=1e-6)
    answer = http.post(f"/gradient{query}", json=body | {"cotangent": cotangent.tolist()}).raise_for_status().json()
    expected = direct.gradients(structures, cotangent, **given)
    np.testing.assert_allclose(np.float32(answer["spectra"]), expected["spectra"], atol=1e-6)
    np.testing.assert_allclose(np.float32(answer["gradient"]), expected["gradient"][:, 0], atol=1e-6)
    for name in ("gradient_distance_um", "gradient_incidence"):
        np.testing.assert_allclose(np.float32(answer[name]), expected[name], rtol=1e-5, atol=1e-6)
    assert list(answer)[-3:] == ["gradient", "gradient_distance_um", "gradient_incidence"]


@pytest.mark.parametrize("content_type", [NPY, RAW])
@pytest.mark.parametrize(
    "names", [["distance_um"], ["incidence"], ["distance_um", "incidence"], ["incidence", "distance_um"]]
)
@pytest.mark.parametrize("binary", [True, False])
def test_as_arrays_of_a_npy_body(
    http: httpx.Client,
    direct: Direct,
    structures: Array,
    cotangent: Array,
    names: list[str],
    content_type: str,
    binary: bool,
) -> None:
    density = structures if binary else np.random.default_rng(1).random(structures.shape)
    arrays = [np.array(BOTH[name]) for name in names]
    given = {name: BOTH[name] for name in names}
    query = "?" + "&".join(f"conditions={name}" for name in names)
    (spectra,) = loaded(post(http, f"/predict{query}", npy(density, *arrays), content_type))
    np.testing.assert_allclose(spectra, direct.spectra(density, **given), atol=1e-6)
    expected = direct.gradients(density, cotangent, **given)
    answer = post(http, f"/gradient{query}", npy(density, cotangent, *arrays), content_type)
    spectra, gradient, *others = loaded(answer)
    np.testing.assert_allclose(spectra, expected["spectra"], atol=1e-6)
    np.testing.assert_allclose(gradient, expected["gradient"][:, 0], atol=1e-6)
    for found, name in zip(others, ("gradient_distance_um", "gradient_incidence"), strict=True):
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6)
    assert answer.headers["MetaSpec-Condition-Shapes"] == "gradient_distance_um=5,1; gradient_incidence=5,2"
    raw = post(http, f"/gradient{query}", npy(density, cotangent, *arrays), content_type, RAW)
    assert raw.content == b"".join(array.tobytes() for array in (spectra, gradient, *others))


def test_arrays_of_other_shapes_and_dtypes(http: httpx.Client, direct: Direct, structures: Array) -> None:
    for array in (
        np.float16(1.25),
        np.full((5, 1), 2, np.int64),
        np.full(5, 1.25, ">f8"),
        np.asfortranarray(np.ones((5, 1))),
    ):
        (spectra,) = loaded(post(http, "/predict?conditions=distance_um", npy(structures, array), NPY))
        np.testing.assert_allclose(spectra, direct.spectra(structures, distance_um=array), atol=1e-6)
    (spectra,) = loaded(
        post(http, "/predict?conditions=incidence", npy(structures, np.array([10, -5], np.float32)), NPY)
    )
    np.testing.assert_allclose(spectra, direct.spectra(structures, incidence=[10, -5]), atol=1e-6)
    content = npy(structures, np.array(DISTANCES))
    (spectra,) = loaded(post(http, "/predict?conditions=distance_um&incidence=10,-5", content, NPY))
    np.testing.assert_allclose(
        spectra, direct.spectra(structures, distance_um=DISTANCES, incidence=[10, -5]), atol=1e-6
    )


def test_packed_bodies_take_values_in_the_query(
    http: httpx.Client, direct: Direct, structures: Array, cotangent: Array
) -> None:
    (spectra,) = loaded(post(http, "/predict?distance_um=1.25", packed(structures), RAW))
    np.testing.assert_allclose(spectra, direct.spectra(structures, distance_um=1.25), atol=1e-6)
    content = packed(structures) + cotangent.tobytes()
    *_, found = loaded(post(http, "/gradient?incidence=10,-5", content, RAW))
    expected = direct.gradients(structures, cotangent, incidence=[10, -5])["gradient_incidence"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_some_channels_and_wavelengths(http: httpx.Client, direct: Direct, structures: Array) -> None:
    """The gradients are those of the cotangent that was given: only what was selected counts."""
    selected = np.random.default_rng(5).standard_normal((5, 2, 2), np.float32)
    whole = np.zeros((5, 4, 301), np.float32)
    whole[:, 3, 0], whole[:, 0, 0] = selected[:, 0, 0], selected[:, 1, 0]
    whole[:, 3, 50], whole[:, 0, 50] = 0.75 * selected[:, 0, 1], 0.75 * selected[:, 1, 1]
    whole[:, 3, 51], whole[:, 0, 51] = 0.25 * selected[:, 0, 1], 0.25 * selected[:, 1, 1]
    query = "?channels=B&channels=R&wavelengths_nm=400&wavelengths_nm=450.25&distance_um=1.25"
    spectra, gradient, *others = loaded(post(http, f"/gradient{query}", npy(structures, selected), NPY))
    expected = direct.gradients(structures, whole, distance_um=1.25)
    assert spectra.shape == (5, 2, 2)
    np.testing.assert_allclose(gradient, expected["gradient"][:, 0], atol=1e-6)
    np.testing.assert_allclose(others[0], expected["gradient_distance_um"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(others[1], expected["gradient_incidence"], rtol=1e-5, atol=1e-6)


def test_half_precision(http: httpx.Client, direct: Direct, structures: Array, cotangent: Array) -> None:
    content = npy(structures, cotangent)
    answered = loaded(post(http, "/gradient?dtype=float16&distance_um=1.25", content, NPY))
    assert {array.dtype for array in answered} == {np.dtype(np.float16)}
    expected = direct.gradients(structures, cotangent, distance_um=1.25)
    np.testing.assert_allclose(answered[2], expected["gradient_distance_um"], rtol=1e-3)
    np.testing.assert_allclose(answered[3], expected["gradient_incidence"], rtol=1e-3, atol=1e-3)


def test_one_structure(http: httpx.Client, direct: Direct, structures: Array) -> None:
    body = {"structures": structures[0].tolist(), "distance_um": [1.25], "incidence": [[10, -5]]}
    answer = http.post("/predict", json=body).raise_for_status().json()
    expected = direct.spectra(structures[:1], distance_um=1.25, incidence=[10, -5])
    np.testing.assert_allclose(np.float32(answer["spectra"]), expected, atol=1e-6)
    (spectra,) = loaded(post(http, "/predict?conditions=distance_um", npy(structures[0], 1.25), NPY))
    np.testing.assert_allclose(spectra, direct.spectra(structures[:1], distance_um=1.25), atol=1e-6)


TAKEN = "distance_um between 1 and 3 um, default 2.5; incidence between -20 and 20 degrees, default (0, 0)"
KNOWN = "known are channels, conditions, dtype, model, priority, version, wavelengths_nm"
RANGE = "distance_um must lie between 1 and 3 um, got "
NUMBERS = "distance_um must be numbers between 1 and 3 um"


@pytest.mark.parametrize(
    ("query", "field", "detail"),
    [
        ("distance_um=3.5", "distance_um", RANGE + "3.5"),
        ("distance_um=-1", "distance_um", RANGE + "-1"),
        ("distance_um=1e400", "distance_um", RANGE + "inf"),
        ("distance_um=nan", "distance_um", NUMBERS + ", got 'nan'"),
        ("distance_um=", "distance_um", NUMBERS + ", got ''"),
        ("distance_um=1_5", "distance_um", NUMBERS + ", got '1_5'"),
        ("distance_um=1.5,", "distance_um", NUMBERS + ", got '1.5,'"),
        ("distance_um=1,2", "distance_um", "distance_um must be a number, or (1,): one for each structure, got an array (2,)"),
        ("distance_um=1&distance_um=2", "distance_um", "distance_um: given twice in the query, expected once"),
        ("incidence=10", "incidence", "incidence must be (2,), or (1, 2) for each structure, got an array ()"),
        ("incidence=10,21", "incidence", "incidence must lie between -20 and 20 degrees, got 21"),
        ("distance=1", "distance", f"distance: unknown name in the query; {KNOWN}; distance is no condition of this model, "
         f"which takes {TAKEN}"),
        ("conditions=distance", "distance", f"distance is no condition of this model, which takes {TAKEN}"),
        ("conditions=distance_um&conditions=distance_um", "conditions",
         "conditions: distance_um is named twice, expected once"),
        ("conditions=distance_um&distance_um=2", "distance_um",
         "distance_um: given in the query and as an array in the body: give it once"),
        ("conditions=distance_um", "conditions",
         "conditions: names arrays of a .npy body, which this is not: give values in the query or in JSON"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/predict", "/gradient"])
def test_refused_in_the_query(http: httpx.Client, path: str, query: str, field: str, detail: str) -> None:
    """Before the body is read: it is none of this route."""
    answer = post(http, f"{path}?{query}", b"x", RAW)
    assert answer.status_code == 422
    assert (answer.json()["field"], answer.json()["detail"]) == (field, detail)


@pytest.mark.parametrize(
    ("query", "value", "detail"),
    [
        ("", 0.5, RANGE + "0.5"),
        ("", [1, 2, 3, 0.5, 1], RANGE + "0.5 at structure 3"),
        ("", [1, 2], "distance_um must be a number, or (5,): one for each structure, got an array (2,)"),
        ("", "1.5", NUMBERS + ": expected evenly nested lists of numbers, got text"),
        ("", [1, 2, 3, 1, True], NUMBERS + ": expected evenly nested lists of numbers, got true or false"),
        ("", [1, [2], 3, 1, 1], NUMBERS + ": expected evenly nested lists of numbers, got lists of different depths"),
        ("", [], "distance_um must be a number, or (5,): one for each structure, got an array (0,)"),
        ("?distance_um=1.25", 1.25, "distance_um: given in the query and in the body: give it once"),
    ],
)
def test_refused_in_json(http: httpx.Client, structures: Array, query: str, value: Any, detail: str) -> None:
    body = {"packed": base64.b64encode(packed(structures)).decode(), "distance_um": value}
    answer = http.post(f"/predict{query}", json=body)
    assert answer.status_code == 422
    assert (answer.json()["field"], answer.json()["detail"]) == ("distance_um", detail)


def test_unknown_fields_of_json_and_arrays_beside_it(http: httpx.Client, structures: Array) -> None:
    body = {"structures": structures.tolist(), "thickness_um": 1}
    known = "unknown field; known are channels, distance_um, incidence, packed, structures, wavelengths_nm"
    assert http.post("/predict", json=body).json()["detail"] == f"thickness_um: {known}"
    answer = http.post("/predict?conditions=distance_um", json={"structures": structures.tolist()})
    assert (answer.status_code, answer.json()["field"]) == (422, "conditions")


def test_refused_arrays(http: httpx.Client, structures: Array) -> None:
    def refused(query: str, *arrays: Any) -> str:
        answer = post(http, f"/predict{query}", npy(structures, *arrays), NPY)
        assert answer.status_code == 422
        detail: str = answer.json()["detail"]
        return detail

    one = "?conditions=distance_um"
    assert refused(one, np.array([1, 2, 3, 0.5, 1])) == RANGE + "0.5 at structure 3"
    assert refused(one, np.array([1, 2, 3, np.nan, 1])) == RANGE + "nan at structure 3"
    assert refused(one, np.array([1, 2])).endswith("or (5,): one for each structure, got an array (2,)")
    assert refused(one, np.array(["1"] * 5)) == NUMBERS + ", got <U1"
    assert refused(one, np.ones(5, bool)) == NUMBERS + ", got bool"
    missing = (
        "body: expected 2 .npy files one after the other, structures, distance_um, got something that cannot be read"
    )
    assert refused(one).startswith(missing)
    left = (
        "bytes are left over after the last array; arrays of conditions are named in the query, as in conditions=NAME"
    )
    assert refused("", np.ones(5)).endswith(left)
    assert refused(one, np.ones(5), np.ones(5)).endswith(left)


def test_an_array_is_refused_by_its_head(http: httpx.Client, structures: Array) -> None:
    """Of a terabyte that the head states, nothing is waited for."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (2**37,)})
    answer = post(http, "/predict?conditions=distance_um", npy(structures) + head.getvalue(), NPY)
    assert answer.json()["detail"].endswith("or (5,): one for each structure, got an array (137438953472,)")


def test_a_model_without_conditions(server: RunningServer, structures: Array) -> None:
    none = "distance_um is no condition of this model, which takes none"
    for path in ("/predict", "/gradient"):
        answer = server.post(f"{path}?distance_um=1", json={"structures": structures.tolist()})
        assert answer.status_code == 422
        assert answer.json()["detail"] == f"distance_um: unknown name in the query; {KNOWN}; {none}"
        answer = server.post(f"{path}?conditions=distance_um", json={"structures": structures.tolist()})
        assert (answer.status_code, answer.json()["detail"]) == (422, none)
    answer = server.post("/predict", json={"structures": structures.tolist(), "distance_um": 1})
    assert (
        answer.json()["detail"] == "distance_um: unknown field; known are channels, packed, structures, wavelengths_nm"
    )
    answer = server.post("/gdsii/write?distance_um=1", json={"structures": structures[0].tolist()})
    assert answer.json()["detail"] == "distance_um: unknown name in the query; known are cell, layer, model"


def test_answers_without_conditions_have_no_more_than_before(
    server: RunningServer, structures: Array, cotangent: Array
) -> None:
    headers = {"Content-Type": NPY, "Accept": JSON}
    answer = server.post("/gradient", content=npy(structures, cotangent), headers=headers).raise_for_status()
    described = ["model", "version", "channels", "wavelengths_nm", "merged_greens", "units"]
    assert list(answer.json()) == [*described, "spectra", "gradient"]
    ours = sorted(name for name in answer.headers if name.startswith("metaspec"))
    shapes = ["metaspec-gradient-shape", "metaspec-merged-greens", "metaspec-model", "metaspec-shape"]
    assert ours == ["metaspec-dtype", *shapes, "metaspec-version"]


def test_many_callers_with_a_distance_of_their_own(conditioned: RunningServer, direct: Direct) -> None:
    """Binary structures go through the cache, densities do not: in neither way is an answer that of another distance."""
    generator = np.random.default_rng(7)
    binary, density = generator.integers(0, 2, (1, 128, 128), np.uint8), generator.random((1, 128, 128))
    distances = np.linspace(1, 3, 40)
    expected = [[direct.spectra(one, distance_um=distance) for distance in distances] for one in (binary, density)]
    bodies = [(packed(binary), RAW), (npy(density), NPY)]

    def ask(number: int) -> None:
        kind = number % 2
        with conditioned.client() as http:
            for n in np.random.default_rng(number).permutation(len(distances)):
                (spectra,) = loaded(post(http, f"/predict?distance_um={float(distances[n])}", *bodies[kind]))
                np.testing.assert_allclose(spectra, expected[kind][n], atol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_the_default_given_or_not_is_one_entry_of_the_cache(conditioned: RunningServer, direct: Direct) -> None:
    structures = np.random.default_rng(11).integers(0, 2, (1, 128, 128), np.uint8)

    def counted(query: str, name: str, fields: dict[str, Any] | None = None) -> float:
        def total() -> float:
            lines = conditioned.get("/metrics").text.splitlines()
            return sum(float(line.split()[-1]) for line in lines if line.startswith(f"metaspec_cache_{name}_total"))

        before = total()
        body = {"packed": base64.b64encode(packed(structures)).decode()} | (fields or {})
        answer = conditioned.post(f"/predict{query}", content=json.dumps(body), headers={"Content-Type": JSON})
        given = {"distance_um": float(query.partition("=")[2])} if query else fields or {}
        expected = direct.spectra(structures, **given)
        np.testing.assert_allclose(np.float32(answer.raise_for_status().json()["spectra"]), expected, atol=1e-6)
        return total() - before

    assert counted("", "misses") == 1
    assert counted("?distance_um=2.5", "hits") == 1
    assert counted("", "hits", {"distance_um": [2.5], "incidence": [0, 0]}) == 1
    assert counted("?distance_um=2.4999999999", "hits") == 1, "the same in float32"
    assert counted("?distance_um=1.25", "misses") == 1
    assert counted("", "misses", {"incidence": [0, 1]}) == 1
    assert counted("", "hits", {"distance_um": 1.25}) == 1


def test_the_documents_tell_how(conditioned: RunningServer) -> None:
    paths = conditioned.get("/openapi.json").json()["paths"]
    for path in ("/predict", "/gradient"):
        operation = paths[path]["post"]
        described = {one["name"]: one for one in operation["parameters"]}
        assert "further arrays" in described["conditions"]["description"]
        assert described["values"]["example"] == {"distance_um": "1.25"}
        schema = operation["requestBody"]["content"][JSON]["schema"]
        assert "distance_um" in schema["additionalProperties"]["description"]
