"""Files that may not be what they should be, or do not answer, as on a mount that is gone: only they are not served."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from metaspec_server import blocking
from metaspec_server.blocking import in_thread, read_file, within
from metaspec_server.core import registry as registry_module
from metaspec_server.core.registry import Registry
from metaspec_server.core.served_model import ServedModel
from metaspec_server.engines.factory import engine_factory
from metaspec_server.repository import ModelFile
from metaspec_server.settings import Settings
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import METADATA, Array, hanging_model, small_model, write_repository

PACKED = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}

STALE = """
import sys
from pathlib import Path
from metaspec_server import blocking, repository

pipes, blocking.PATIENCE, repository.PATIENCE = Path(sys.argv.pop(1)), 1.0, 1.0

def stale(function):
    def call(path, *arguments):
        pipe = pipes / "-".join(path.parts[-3:])
        if pipe.exists():
            pipe.read_bytes()
        return function(path, *arguments)
    return call

blocking._read, repository._versions = stale(blocking._read), stale(repository._versions)
from metaspec_server.ops.cli import main
main()
"""
"""The command. A file or folder of the repository does not answer while there is a pipe in its name, to stand for a stale
mount, which no test can make; a call counts as hanging after a second."""


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def spectra(server: RunningServer, structures: Array, query: str) -> Array:
    answer = server.post(f"/predict?{query}", content=np.packbits(structures).tobytes(), headers=PACKED)
    return np.frombuffer(answer.raise_for_status().content, np.float32)


def index(server: RunningServer) -> dict[tuple[str, str], str | None]:
    """Reason why it is not served, or not as it is on disk, of each model and version; None if it is."""
    entries = server.post("/v2/repository/index").json()
    return {(entry["name"], entry["version"]): entry.get("reason") for entry in entries}


@pytest.mark.slow
def test_what_hangs_is_left_out_and_the_rest_goes_on(tmp_path: Path, structures: Array) -> None:
    import onnxruntime

    root, pipes = write_repository(tmp_path / "repository", small_model()), tmp_path / "pipes"
    write_repository(root, small_model(METADATA | {"name": "other"}, seed=5))
    pipes.mkdir()
    flags = ("--repository", str(root), "--poll-interval", "0.1", "--load-timeout", "3")
    with running_server(*flags, program=(sys.executable, "-c", STALE, str(pipes))) as server:

        def publish(model: onnx.ModelProto, name: str, version: int) -> None:
            """Put a whole version into the repository, at once."""
            elsewhere = write_repository(tmp_path / "elsewhere", model, version)
            (elsewhere / name / str(version)).rename(root / name / str(version))

        def next_version_is_served(version: int) -> None:
            """The other model is looked at, and right."""
            publish(small_model(seed=version), "diffractionnet", version)
            until(lambda: ("diffractionnet", str(version)) in index(server))
            session = onnxruntime.InferenceSession(root / "diffractionnet" / str(version) / "model.onnx")
            right = session.run(None, {"structure": structures[:, None].astype(np.float32)})[0]
            answer = spectra(server, structures, "model=diffractionnet")
            np.testing.assert_allclose(answer, right.ravel(), atol=1e-6)

        before = spectra(server, structures, "model=other")
        file = root / "other" / "2" / "model.onnx"
        file.parent.mkdir()
        os.mkfifo(file)
        kind = f"{file}: cannot be read: it is a named pipe, expected a regular file"
        until(lambda: index(server).get(("other", "2")) == kind)
        next_version_is_served(2)

        os.mkfifo(pipes / "other-3-model.onnx")
        publish(small_model(METADATA | {"name": "other"}, seed=6), "other", 3)
        slow = f"{root}/other/3/model.onnx: cannot be read: no answer within "
        until(lambda: (index(server).get(("other", "3")) or "").startswith(slow))
        next_version_is_served(3)
        assert "metaspec_repository_unreadable 2.0" in server.get("/metrics").text
        os.replace(pipes / "other-3-model.onnx", pipes / "answers")
        (pipes / "answers").write_bytes(b"")  # the call that hangs ends
        until(lambda: ("other", "3") in index(server) and index(server)["other", "3"] is None)
        after = spectra(server, structures, "model=other")
        assert np.abs(after - before).max() > 1e-3

        publish(hanging_model(METADATA | {"name": "other"}, seed=7, solid_pixels=128 * 128), "other", 4)
        late = "ONNX Runtime fails to run it: it has not finished within 3 s"
        until(lambda: (index(server).get(("other", "4")) or "").endswith(late))
        next_version_is_served(4)

        pipe = pipes / f"{root.parent.name}-repository-other"
        os.mkfifo(pipe)
        gone = f"{root}/other: cannot be read: no answer within 1 s"
        until(lambda: index(server).get(("other", "")) == gone)
        next_version_is_served(5)
        np.testing.assert_array_equal(spectra(server, structures, "model=other"), after)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0, "though two calls hang"
    until(lambda: any("stays as it was loaded" in line for line in server.log))  # the log comes through a pipe
    said = [line for line in server.log if "other" in line]
    assert [sum(text in line for line in said) for text in (kind, slow, late, gone)] == [1, 1, 1, 1]
    assert len(said) == 5, "and that version 3 is loaded"
    assert not any("Traceback" in line for line in server.log)


def test_a_model_whose_folder_is_removed(tmp_path: Path, structures: Array) -> None:
    """It is unloaded, and the log and the index say so; one that was never served leaves the index, too."""
    root = write_repository(tmp_path, small_model())
    write_repository(root, small_model(METADATA | {"name": "other"}))
    with running_server("--repository", str(root), "--poll-interval", "0.1") as server:
        (root / "empty").mkdir()
        until(lambda: ("empty", "") in index(server))
        shutil.rmtree(root / "other")
        (root / "empty").rmdir()
        until(lambda: set(index(server)) == {("diffractionnet", "1")})
        assert server.post("/predict?model=other", content=b"", headers=PACKED).status_code == 404
        write_repository(root, small_model(METADATA | {"name": "other"}))
        until(lambda: ("other", "1") in index(server))
        shutil.rmtree(root / "other" / "1")
        without = f"{root}/other: has no version; expected a folder 1, 2, ... in it"
        until(lambda: index(server).get(("other", "")) == without)
        until(lambda: any(without in line for line in server.log))
        said = [line for line in server.log if "other" in line]
    assert [("is gone from the repository, and is unloaded" in line) for line in said] == [True, False]
    assert f"other is not served: {without}" in said[1]


async def test_a_version_that_is_not_loaded_in_time_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_GRACE", 0.0)
    options: dict[str, Any] = {"threads": 1}
    engine = engine_factory(Settings(**options), lambda name: lambda batch: None)
    may_load, made = threading.Event(), []

    def load(file: ModelFile) -> ServedModel:
        if file.name == "another":
            assert may_load.wait(60)
        made.append(engine(file))
        return made[-1]

    write_repository(tmp_path, small_model(METADATA | {"name": "another"}))
    write_repository(tmp_path, small_model(METADATA | {"name": "other"}))
    registry = Registry(tmp_path, 2, load, load_timeout=1.0)
    await registry.refresh()
    assert [model.name for model in registry.served()] == ["other"]
    reason = f"{tmp_path}/another/1/model.onnx: it has not been loaded within 1 s"
    assert registry.failures() == [("another", 1, reason)]
    may_load.set()
    async with asyncio.timeout(60):
        while any(thread.name.startswith("another") for thread in threading.enumerate()) or len(made) < 2:
            await asyncio.sleep(0.01)
    await registry.refresh()
    assert [model.name for model in registry.served()] == ["other"], "it is not tried again"
    await registry.close(60)


def test_a_call_that_hangs_is_not_made_again() -> None:
    release, calls = threading.Event(), []

    def hang(number: int) -> int:
        calls.append(number)
        assert release.wait(60)
        return number

    for _ in range(3):
        with pytest.raises(TimeoutError) as late:
            within(0.01, hang, 7)
        assert late.value.strerror == "no answer within 0.01 s"
    assert calls == [7]
    release.set()
    until(lambda: blocking._given_up[hang, (7,)].done())
    assert within(60, hang, 7) == 7
    assert calls == [7, 7]

    def fail() -> None:
        raise TimeoutError(110, "of the file system")

    with pytest.raises(TimeoutError, match="of the file system"):
        within(60, fail)
    assert in_thread(len, "abc").result(60) == 3


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link", 5) == b"12345"
    for path, kind in ((tmp_path / "pipe", "a named pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        with pytest.raises(OSError, match=f"it is {kind}, expected a regular file"):
            read_file(path, 5)
    with pytest.raises(OSError, match="it has 5 bytes, expected at most 4"):
        read_file(tmp_path / "file", 4)
