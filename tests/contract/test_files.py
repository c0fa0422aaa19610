from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaspec_contract.files import (
    read_array,
    replacing,
    sync_folder,
    write_array,
    write_bytes,
    write_json,
    write_text,
)

ROUNDS = 200
LENGTH = 50_000

WRITER = """
import sys
from pathlib import Path
from metaspec_contract.files import write_bytes
for _ in range(int(sys.argv[3])):
    write_bytes(Path(sys.argv[1]), sys.argv[2].encode() * int(sys.argv[4]))
"""


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def read_whole(path: Path, done: threading.Event) -> int:
    """Read a file until told to stop; every read must find one writer's whole content. Returns the number of reads."""
    reads = 0
    while not done.is_set():
        content = path.read_bytes()
        assert content == content[:1] * LENGTH
        reads += 1
    return reads


@pytest.mark.parametrize("writers", ["threads", "processes"])
def test_two_that_write_one_path(tmp_path: Path, writers: str) -> None:
    path, done = tmp_path / "x.bin", threading.Event()
    write_bytes(path, b"0" * LENGTH)
    with ThreadPoolExecutor(3) as pool:
        reader = pool.submit(read_whole, path, done)
        try:
            if writers == "threads":

                def write(letter: bytes) -> None:
                    for _ in range(ROUNDS):
                        write_bytes(path, letter * LENGTH)

                for future in [pool.submit(write, letter) for letter in (b"a", b"b")]:
                    future.result(timeout=60)
            else:
                command = [sys.executable, "-c", WRITER, str(path)]
                running = [subprocess.Popen([*command, letter, str(ROUNDS), str(LENGTH)]) for letter in "ab"]
                assert [process.wait(timeout=60) for process in running] == [0, 0]
        finally:
            done.set()
        assert reader.result(timeout=60) > 0
    assert path.read_bytes()[:1] in (b"a", b"b")
    assert os.listdir(tmp_path) == ["x.bin"]


def test_every_writer(tmp_path: Path) -> None:
    for again in range(2):
        write_text(tmp_path / "a.txt", f"µ{again}")
        write_json(tmp_path / "b.json", {"nm": [again, 0.5]})
        write_array(tmp_path / "c.npy", np.full((2, 3), again))
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "µ1"
    assert (tmp_path / "b.json").read_text() == '{\n  "nm": [\n    1,\n    0.5\n  ]\n}\n'
    np.testing.assert_array_equal(read_array(tmp_path / "c.npy"), np.ones((2, 3)))
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.json", "c.npy"]


@pytest.mark.parametrize("document", [float("nan"), [float("inf")], {"x": object()}])
def test_what_json_cannot_say_is_not_written(tmp_path: Path, document: object) -> None:
    path = tmp_path / "x.json"
    write_text(path, "before")
    with pytest.raises((ValueError, TypeError)):
        write_json(path, document)
    with pytest.raises(ValueError, match="Object arrays"):
        write_array(path, np.array([None]))
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_raises(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "before")

    def interrupted() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            assert path.read_text() == "before"
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("name", ["n" * 251 + ".npy", "ü" * 125 + ".npy", "archive.tar.gz", ".hidden", "plain"])
def test_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with replacing(path) as partial:
        assert partial.parent == tmp_path
        assert partial.suffix == path.suffix
        partial.write_bytes(b"new")
    assert os.listdir(tmp_path) == [name]
    assert path.read_bytes() == b"new"


@pytest.mark.usefixtures("umask")
def test_mode(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    for mode in (0o600, 0o755, 0o400):  # what is private stays private; the folder says who may replace a file
        path.chmod(mode)
        write_text(path, "newer")
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_keeps_pointing_at_its_file(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "target.txt", tmp_path / "link.txt"
    if exists:
        target.write_text("old")
    link.symlink_to(Path("elsewhere") / "target.txt")
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "link.txt"]
    assert os.listdir(tmp_path / "elsewhere") == ["target.txt"]


def test_a_pipe_is_written_as_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(pipe.read_bytes)
        write_bytes(pipe, b"through")
        assert reader.result(timeout=30) == b"through"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_standard_output() -> None:
    code = "from pathlib import Path; from metaspec_contract.files import write_text; write_text(Path('/dev/stdout'), 'out')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout == "out"


@pytest.mark.parametrize("place", ["missing/x.txt", "file/x.txt", "folder"])
def test_errors_name_the_path(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    path = tmp_path / place
    with pytest.raises(OSError) as caught:  # noqa: PT011 - of three kinds
        write_text(path, "new")
    assert str(caught.value).endswith(f": '{path}'")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_block_that_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with pytest.raises(FileNotFoundError, match=r"x\.txt'$"), replacing(path):
        pass
    assert os.listdir(tmp_path) == []


def test_sync_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "missing")


@pytest.mark.parametrize("shape", [(3, 4), (0, 128, 128), ()])
def test_arrays(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path, array = tmp_path / "x.npy", np.ones(shape, np.float32)
    write_array(path, array)
    for mode in (None, "r"):
        found = read_array(path, "r" if mode else None)
        assert isinstance(found, np.memmap) == bool(mode)
        np.testing.assert_array_equal(found, array)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def test_files_that_are_not_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {"empty": b"", "text": b"hello", "pickle": pickle.dumps(Bomb()), "zip": b"PK\x03\x04 not a zip"}
    for name, content in contents.items():
        Path(name).write_bytes(content)
    np.savez("archive", a=np.zeros(3), b=np.zeros(3))
    for name, array in {
        "objects": np.array([Bomb()], object),
        "text": np.array(["a", "b"]),
        "fields": np.zeros(3, [("x", "f4")]),
    }.items():
        np.save(f"{name}.npy", array, allow_pickle=True)
    Path("folder").mkdir()
    np.save("cut.npy", np.zeros(1000))
    Path("cut.npy").write_bytes(Path("cut.npy").read_bytes()[:-9])
    names = [*contents, "archive.npz", "objects.npy", "text.npy", "fields.npy", "cut.npy", "folder"]
    for name in names:
        with pytest.raises(ValueError, match=f"^{name} is not a .npy file of plain numbers: "):
            read_array(Path(name))
    with pytest.raises(ValueError, match=r"^absent\.npy is missing$"):
        read_array(Path("absent.npy"))
    assert not Path("exploded").exists()


NEGATIVE = pytest.param(
    "(-1,)",
    marks=pytest.mark.skipif(
        np.lib.NumpyVersion(np.__version__) < "2.4.0",
        reason="NumPy 2.0 reads all that is there, which is no more than that",
    ),
)


@pytest.mark.parametrize(
    "shape", ["(10**15,)", "(1000000000000000,)", "(" + "9" * 30 + ",)", "(007,)", NEGATIVE, "(2,"]
)
@pytest.mark.filterwarnings("ignore")
def test_headers_that_ask_for_too_much(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "x.npy"
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64))
    for mode in (None, "r"):
        with pytest.raises(ValueError, match=r"x\.npy is not a \.npy file of plain numbers: "):
            read_array(path, "r" if mode else None)


header = st.integers(0, 100)
edits = st.lists(
    st.tuples(header, header, st.one_of(st.binary(max_size=4), st.sampled_from([b"9" * 20, b"(", b"'", b"\n", b"0"]))),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=edits, cut=st.integers(0, 4))
@pytest.mark.filterwarnings("ignore")  # NumPy warns of headers that look like those of Python 2
def test_damaged_headers_are_refused_or_read(tmp_path: Path, edits: list[tuple[int, int, bytes]], cut: int) -> None:
    path = tmp_path / "x.npy"
    write_array(path, np.arange(6, dtype=np.float32).reshape(2, 3))
    content = bytearray(path.read_bytes())
    for start, _, put in edits:
        content[start : start + cut] = put
    path.write_bytes(content)
    for mode in (None, "r"):
        try:
            assert read_array(path, "r" if mode else None).dtype.kind in "biufc"
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 - either is right, depending on the damage
