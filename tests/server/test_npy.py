"""Heads of `.npy` files: those that NumPy writes, and those that nobody should."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array, Expected

NPY = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
MAGIC = b"\x93NUMPY"


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    """One connection: each answer leaves it usable, or says that it is closed."""
    with server.client(limits=httpx.Limits(max_connections=1)) as client:
        yield client


def file(text: str | bytes, version: int = 1, data: bytes = b"", length: int | None = None) -> bytes:
    """A `.npy` file with any head."""
    head = text.encode("latin1") if isinstance(text, str) else text
    size = (len(head) if length is None else length).to_bytes(2 if version == 1 else 4, "little")
    return MAGIC + bytes([version, 0]) + size + head + data


def head(shape: str, descr: str = "'|u1'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def refused(http: httpx.Client, body: bytes) -> str:
    answer = http.post("/predict", content=body, headers=NPY)
    assert 400 <= answer.status_code < 500, answer.text
    assert http.get("/v2/health/live").status_code == 200
    return str(answer.json()["detail"])


STRANGE = [
    (file(head("(-1, 128, 128)")), "its head must be a dictionary"),
    (file(head("(9" + "9" * 15 + ", 128, 128)")), "at most 600 structures"),
    (file(head("(601, 128, 128)")), "at most 600 structures in one request, got 601"),
    (file(head("(" + "9" * 3900 + ", 128, 128)")), "up to 32 whole numbers, got (9"),
    (file(head("(" + "9" * 500 + ", 128, 128)")), "whole numbers"),
    (file(head("(0, 128, 128)")), "at least one structure"),
    (file(head("(128, 0)")), "got (128, 0)"),
    (file(head("(" + "1, " * 1000 + ")")), "up to 32 whole numbers"),
    (file(head("(" + "1, " * 20 + ")")), "got 20 axes"),
    (file(head("()")), "got ()"),
    (file(head("(128, 128)", "'|O'")), "pickled Python objects"),
    (file(head("(128, 128)", "[('a', '<f4')]")), "its head must be a dictionary"),
    (file(head("(128, 128)", "'<f4,<f4'")), "a dtype of numbers"),
    (file(head("(128, 128)", "'(999999999,)f4'")), "dtype"),
    (file(head("(128, 128)", "'<U9999999'")), "must be numbers"),
    (file(head("(128, 128)", "'<c8'")), "got complex64"),
    (file(head("(128, 128)", "'<f3'")), "descr must be a dtype"),
    (file(head("(128, 128)", "'V0'")), "descr must be a dtype"),
    (file(head("(128, 128)", "''")), "descr must be a dtype"),
    (file(head("(128, 128)", order="1")), "its head must be a dictionary"),
    (file(head("(128, 128)"), data=b"\0" * 16383), "states 16384 bytes of data, but there are 16383"),
    (file(head("(128, 128)"), data=b"\0" * 16385), "1 bytes are left over"),
    (file(head("(128, 128)", "'|b1'"), data=b"\7" * 16384), "the bytes of booleans must be 0 or 1, got 7"),
    (file(head("(128, 128)"), length=65535), "at most 4096 bytes, got 65535"),
    (file(head("(128, 128)"), version=2, length=2**32 - 1), "at most 4096 bytes"),
    (file(head("(128, 128)"), length=500), "its head has"),
    (file(head("(128, 128)"), version=9), "version must be 1, 2 or 3, got 9"),
    (file("(" * 4000), "its head must be a dictionary"),
    (file("-" * 4000 + "1"), "its head must be a dictionary"),
    (file(b"\xff" * 100, version=3), "its head must be a dictionary"),
    (MAGIC, "it must start with"),
    (b"", "it must start with"),
    (b"\x93NUMPZ" + b"\0" * 100, "it must start with"),
]


@pytest.mark.parametrize(("body", "message"), STRANGE, ids=[f"{n}" for n in range(len(STRANGE))])
def test_strange_heads_are_refused(http: httpx.Client, body: bytes, message: str) -> None:
    assert message in refused(http, body)


def test_a_shape_is_refused_before_its_data_are_sent(server: RunningServer) -> None:
    """The answer comes although the caller, who has announced half a gigabyte, sends no more than the head."""
    import socket

    host, port = server.address.split(":")
    body = file(head("(100000, 128, 128)"))
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        start = (
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\nContent-Length: 500000000\r\n\r\n"
        )
        connection.sendall(start + body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["|b1", "|u1", ">i4", "<i8", "<f2", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes_is_read(
    http: httpx.Client, structures: Array, expected: Expected, version: tuple[int, int], dtype: str, order: Any
) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, structures.astype(dtype, order=order), version=version)
    answer = http.post("/predict", content=buffer.getvalue(), headers=NPY).raise_for_status()
    np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), expected(structures), atol=1e-6)


SHAPE = st.lists(st.integers(-2, 2**70) | st.sampled_from([1, 2, 128]), max_size=5).map(lambda axes: str(tuple(axes)))
DESCR = st.sampled_from(["'|u1'", "'<f8'", "'|O'", "'|S5'", "None", "[('a', '<f4')]", "'m8[ns]'"]) | st.text(max_size=8)
LIKE_A_HEAD = st.builds(head, SHAPE, DESCR, st.sampled_from(["True", "False", "None"]))
ANY_FILE = st.builds(
    file,
    st.one_of(LIKE_A_HEAD.map(lambda text: text.encode("utf-8", "replace")), st.binary(max_size=200)),
    st.integers(0, 4),
    st.binary(max_size=100),
    st.none() | st.integers(0, 65535),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=ANY_FILE, route=st.sampled_from(["/predict", "/gradient"]))
def test_no_file_breaks_the_server(http: httpx.Client, body: bytes, route: str) -> None:
    answer = http.post(route, content=body, headers=NPY)
    assert 400 <= answer.status_code < 500
    assert answer.json()["detail"]
    assert "connection" not in answer.headers, "it can be used again"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    array=hnp.arrays(
        st.one_of(
            hnp.floating_dtypes(), hnp.integer_dtypes(), hnp.complex_number_dtypes(), hnp.unicode_string_dtypes()
        ),
        hnp.array_shapes(min_dims=0, max_dims=4, max_side=3),
    )
)
def test_arrays_of_other_shapes_are_refused_for_their_shape_or_dtype(http: httpx.Client, array: Array) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    answer = http.post("/predict", content=buffer.getvalue(), headers=NPY)
    assert answer.status_code == 422
    assert answer.json()["field"] == "structures"
