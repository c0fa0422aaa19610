"""Writing to a repository: whole versions or nothing, and names."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from metaspec_export.publish import Publication, model_name, next_version, publish


def publication(name: str, content: str) -> Publication:
    return Publication(name, f"config {content}", {"model.onnx": content.encode(), "tensorrt/engine": b"engine"})


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), SystemExit(143)])
def test_a_full_disk_or_a_signal_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    publish(tmp_path, 1, [publication("forward", "first"), publication("vjp", "first")])
    before = snapshot(tmp_path)
    fsync, remaining = os.fsync, 0

    def full_disk(descriptor: int) -> None:
        nonlocal remaining
        if remaining == 0:
            raise failure
        remaining -= 1
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", full_disk)
    second = [publication("forward", "second"), publication("vjp", "second")]
    for allowed in range(100):  # until the disk has room for everything
        remaining = allowed
        with contextlib.suppress(type(failure)):
            publish(tmp_path, 2, second)
            break
        assert snapshot(tmp_path) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["forward", "vjp"]
    assert allowed >= 2 * 3 + 2 + 1  # files of two models, their folders, the repository
    assert (tmp_path / "vjp" / "2" / "model.onnx").read_bytes() == b"second"
    assert (tmp_path / "vjp" / "config.pbtxt").read_text() == "config second"
    assert next_version(tmp_path, ["vjp"]) == 3


def test_a_first_publication_that_fails_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        publish(tmp_path / "new" / "repository", 1, [publication("forward", "first")])
    assert not (tmp_path / "new").exists()


def test_published_versions_never_change(tmp_path: Path) -> None:
    publish(tmp_path, 1, [publication("forward", "first")])
    with pytest.raises(FileExistsError, match=r"forward/1 exists already: choose another --version"):
        publish(tmp_path, 1, [publication("other", "second"), publication("forward", "second")])
    assert [path.name for path in tmp_path.iterdir()] == ["forward"]


def test_names() -> None:
    assert model_name("int8", gradient=True, symmetric=True, network="mine") == "mine_symmetric_int8_vjp"
    with pytest.raises(
        ValueError, match=r"must be 1 to 64 of a-z, 0-9 and _ and begin with a letter, got '\.\./models'"
    ):
        model_name(network="../models")
    for ending in ("_symmetric", "_fp16", "_int8", "_vjp"):
        with pytest.raises(ValueError, match=f"must not end with {ending}, as the names of its variants do"):
            model_name(network=f"fast{ending}")
