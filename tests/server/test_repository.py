"""A repository that cannot be read, as a whole or in part: what was loaded from it is served, and it is said once."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from metaspec_server import repository as repository_module
from metaspec_server.core import registry as registry_module
from metaspec_server.core.registry import Registry
from metaspec_server.engines.factory import engine_factory
from metaspec_server.repository import Contents, ModelFile, RepositoryError, read_repository
from metaspec_server.settings import Settings
from metaspec_testing.servers import running_server
from metaspec_testing.small_models import METADATA, small_model, write_repository

OTHER = METADATA | {"name": "other"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two models. The folder of the one that is called "other" is a symbolic link, which can be replaced at once."""
    root = write_repository(tmp_path / "repository", small_model())
    write_repository(tmp_path / "elsewhere", small_model(OTHER))
    (root / "other").symlink_to(tmp_path / "elsewhere" / "other")
    return root


def point(link: Path, target: Path) -> None:
    """Let a symbolic link point elsewhere; at itself, the system refuses to read it."""
    new = link.with_name(".new")
    new.symlink_to(target)
    os.replace(new, link)


@asynccontextmanager
async def loaded(root: Path, failures: list[tuple[str, int, str]]) -> AsyncIterator[Registry]:
    options: dict[str, Any] = {"threads": 1, "max_batch": 4}
    load = engine_factory(Settings(**options), lambda name: lambda batch: None)
    registry = Registry(root, 2, load, failed=lambda *failure: failures.append(failure))
    await registry.refresh()
    yield registry
    await registry.close(60)


def served(registry: Registry) -> set[tuple[str, int]]:
    return {(model.name, model.version) for model in registry.served()}


BOTH = {("diffractionnet", 1), ("other", 1)}


async def test_a_model_that_cannot_be_read_stays(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    noted: list[tuple[str, int, str]] = []
    async with loaded(root, noted) as registry:
        before = {model.number for model in registry.served()}
        assert registry.unreadable == 0
        point(root / "other", root / "other")
        for _ in range(3):
            await registry.refresh()
        assert {model.number for model in registry.served()} == before
        assert noted == [("other", 0, f"{root}/other: cannot be read: {os.strerror(errno.ELOOP)}")], "once"
        assert registry.failures() == noted
        assert registry.unreadable == 1
        with pytest.raises(RepositoryError, match="cannot be read"):
            await registry.load("other")
        write_repository(root, small_model(seed=2), version=2)
        await registry.refresh()
        assert served(registry) == {*BOTH, ("diffractionnet", 2)}, "the others go on changing"
        caplog.clear()
        point(root / "other", root.parent / "elsewhere" / "other")
        for _ in range(3):
            await registry.refresh()
        assert before < {model.number for model in registry.served()}, "nothing is loaded again"
        assert not registry.failures()
        assert registry.unreadable == 0
        assert [record.getMessage() for record in caplog.records] == [f"{root}/other can be read again"]


async def test_a_version_that_cannot_be_read_stays(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = root / "other" / "1" / "model.onnx"
    file.rename(file.with_name("real.onnx"))
    file.symlink_to("real.onnx")
    noted: list[tuple[str, int, str]] = []
    async with loaded(root, noted) as registry:
        before = {model.number for model in registry.served()}
        point(file, file)
        for _ in range(3):
            await registry.refresh()
        assert {model.number for model in registry.served()} == before
        assert noted == [("other", 1, f"{file}: cannot be read: {os.strerror(errno.ELOOP)}")]
        assert registry.unreadable == 1
        caplog.clear()
        point(file, Path("real.onnx"))
        for _ in range(3):
            await registry.refresh()
        assert {model.number for model in registry.served()} == before
        assert not registry.failures()
        assert [record.getMessage() for record in caplog.records] == [
            "other version 1 is again the file that is loaded"
        ]


async def test_at_the_start_the_others_are_served(root: Path) -> None:
    point(root / "other", root / "other")
    (root / "lost+found").mkdir()
    (root / "a file").touch()
    (root / "dangling").symlink_to(root / "nothing")
    async with loaded(root, []) as registry:
        assert served(registry) == {("diffractionnet", 1)}
        assert [(name, version) for name, version, _ in registry.failures()] == [("other", 0)]
        point(root / "other", root.parent / "elsewhere" / "other")
        await registry.refresh()
        assert served(registry) == BOTH


@pytest.mark.parametrize("kind", ["gone", "empty", "without versions", "a file", "unreadable"])
async def test_a_whole_repository_that_cannot_be_read(
    root: Path, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0

    def counted(repository: Path) -> Contents:
        nonlocal reads
        reads += 1
        return read_repository(repository)

    async def after_reads(number: int) -> None:
        until = reads + number
        async with asyncio.timeout(60):
            while reads < until:
                await asyncio.sleep(0.005)

    monkeypatch.setattr(registry_module, "read_repository", counted)
    async with loaded(root, []) as registry:
        before = {model.number for model in registry.served()}
        root.rename(root.parent / "away")
        match kind:
            case "empty":
                (root / "lost+found").mkdir(parents=True)
            case "without versions":
                (root / "diffractionnet").mkdir(parents=True)
            case "a file":
                root.touch()
            case "unreadable":
                root.symlink_to(root)
        watching = asyncio.create_task(registry.watch(0.005))
        await after_reads(4)
        assert {model.number for model in registry.served()} == before
        assert registry.unreadable == 1
        (said,) = [record.getMessage() for record in caplog.records]
        reasons = {"gone": "no such folder", "a file": "no such folder", "unreadable": "cannot be read"}
        assert said.startswith(f"{root}: {reasons.get(kind, 'is empty')}")
        assert said.endswith("; what was loaded before stays")
        caplog.clear()
        if root.is_dir():
            shutil.rmtree(root)
        else:
            root.unlink(missing_ok=True)
        (root.parent / "away").rename(root)
        await after_reads(4)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        assert {model.number for model in registry.served()} == before
        assert registry.unreadable == 0
        assert [record.getMessage() for record in caplog.records][-1] == f"{root} can be read again"
        assert all(record.levelno >= logging.WARNING for record in caplog.records)


def test_a_repository_that_is_replaced_while_it_is_read_is_read_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a part of what was there before and a part of what is there now."""
    away = root.rename(root.parent / "away")
    (root / "diffractionnet").mkdir(parents=True)
    versions = repository_module._versions

    def replaced(folder: Path) -> list[ModelFile]:
        if away.exists():
            shutil.rmtree(root)
            away.rename(root)
        return versions(folder)

    monkeypatch.setattr(repository_module, "_versions", replaced)
    found = read_repository(root)
    assert {name: [file.version for file in files] for name, files in found.models.items()} == {
        "diffractionnet": [1],
        "other": [1],
    }


@pytest.mark.skipif(
    shutil.which("setpriv") is None or os.geteuid() != 0, reason="needs root, and setpriv of util-linux"
)
def test_folders_of_others_beside_the_models(root: Path) -> None:
    """Such as the root's own in a volume: the server may not read them, and may not be root."""
    root.parent.chmod(0o755)
    (root / "private").mkdir(mode=0o700)
    write_repository(root, small_model(seed=2), version=2)
    (root / "diffractionnet" / "2" / "model.onnx").chmod(0o600)
    for path in (root / "private", root / "diffractionnet" / "2" / "model.onnx"):
        os.chown(path, 65534, 65534)
    drop = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
    program = (*drop, sys.executable, "-m", "metaspec_server")
    with running_server("--repository", str(root), program=program) as server:
        assert server.get("/v2/health/ready").status_code == 200
        index = server.post("/v2/repository/index").json()
        reasons = {(entry["name"], entry["version"]): entry.get("reason", "") for entry in index}
        assert {place for place, reason in reasons.items() if not reason} == {("diffractionnet", "1"), ("other", "1")}
        unreadable = {
            place for place, reason in reasons.items() if reason.endswith("cannot be read: Permission denied")
        }
        assert unreadable == {("diffractionnet", "2"), ("private", "")}
        assert "metaspec_repository_unreadable 2.0" in server.get("/metrics").text
