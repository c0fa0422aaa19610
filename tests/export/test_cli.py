"""The command line: options, and one line with exit status 2 for what cannot be exported."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import pytest
import torch

from metaspec_testing.small_models import small_model, write_repository
from metaspec_training.networks.symmetric import DEFAULT_IMAGES

Command = Callable[..., subprocess.CompletedProcess[str]]


def refused(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("metaspec-export: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--precision", "fp8"), "expected one or more of fp32, fp16, int8, got 'fp8'"),
        (("--precision", "bf16"), "no bfloat16 convolution on CPUs"),
        (("--tensorrt",), "has no TensorrtExecutionProvider"),
        (("--data", "no/such/data"), "no/such/data"),
        (("--data", "tests"), "tests"),
        (("--name", "../models"), "must be 1 to 64 of a-z, 0-9 and _ and begin with a letter, got '../models'"),
        (("--name", "fast_vjp"), "must not end with _vjp, as the names of its variants do"),
        (("--symmetric", "--images", "3"), "images must be one of 2, 4, 8, got 3"),
        (("--version", "0"), "'--version'"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_bad_options_end_with_one_line(
    tmp_path: Path, checkpoint: Path, data: Path, command: Command, arguments: tuple[str, ...], message: str
) -> None:
    if arguments == ("--tensorrt",) and "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has TensorRT")
    given = ("--data", data, *arguments) if "--data" not in arguments else arguments
    result = command(checkpoint, "--repository", tmp_path / "repository", "--allow-dirty", *given)
    assert message in refused(result)
    assert not (tmp_path / "repository").exists()


def test_files_that_cannot_be_exported(tmp_path: Path, checkpoint: Path, data: Path, command: Command) -> None:
    def refusal(file: Path) -> str:
        return refused(command(file, "--repository", tmp_path / "repository", "--data", data, "--allow-dirty"))

    garbage = tmp_path / "garbage.ckpt"
    garbage.write_bytes(b"x" * 100)
    assert "is not a checkpoint" in refusal(garbage)
    state = torch.load(checkpoint, weights_only=True)
    broken = dict(state["state_dict"])
    name = next(iter(broken))
    torch.save(state | {"state_dict": {k: v for k, v in broken.items() if k != name}}, garbage)
    assert "is not a checkpoint" in refusal(garbage)
    broken[name] = torch.full_like(broken[name], torch.nan)
    torch.save(state | {"state_dict": broken}, garbage)
    assert f"not finite, in {name.removeprefix('network.')}" in refusal(garbage)
    torch.save(state | {"provenance": state["provenance"] | {"process": {"period_um": 2.0}}}, garbage)
    assert "provenance" in refusal(garbage)
    assert "does not exist" in refusal(tmp_path / "missing.ckpt")
    assert not (tmp_path / "repository").exists()


def test_uncommitted_code_is_refused_with_advice(
    tmp_path: Path, checkpoint: Path, data: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaspec_export.revision._SOURCES", [tmp_path])  # nothing there is committed
    result = command(checkpoint, "--repository", tmp_path / "repository", "--data", data)
    assert "pass --allow-dirty" in refused(result)
    assert not (tmp_path / "repository").exists()


def test_a_model_of_another_device_is_not_replaced(
    tmp_path: Path, checkpoint: Path, data: Path, command: Command
) -> None:
    write_repository(tmp_path, small_model())
    result = command(checkpoint, "--repository", tmp_path, "--data", data, "--allow-dirty")
    line = refused(result)
    assert f"{tmp_path / 'diffractionnet'} are of different processes: period_um 1.6 against 2.0" in line
    assert line.endswith("publish it under another --name")
    assert [path.name for path in (tmp_path / "diffractionnet").iterdir()] == ["1"]


@pytest.mark.slow
def test_help_and_version(command: Command) -> None:
    for arguments in ((), ("--help",), ("export", "--help")):
        result = command(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        assert "Usage: metaspec-export" in result.stdout
    text = " ".join(command("export", "--help").stdout.split())
    assert re.search(rf"--images .* 2, 4 or 8\. \[default: {DEFAULT_IMAGES}\]", text)
    expected = f"metaspec-export {version('metaspec-lab')}\n"
    assert command("--version").stdout == expected
    program = [sys.executable, "-m", "metaspec_export", "--version"]
    result = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, expected, "")


def test_the_command_starts_without_pytorch() -> None:
    code = "import sys, metaspec_export.cli; print({'torch', 'onnx', 'onnxruntime'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.stderr) == ("set()\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "message"), [(signal.SIGTERM, "terminated"), (signal.SIGINT, "interrupted")])
def test_an_export_that_is_stopped_says_so_and_leaves_nothing_behind(
    tmp_path: Path, checkpoint: Path, data: Path, number: signal.Signals, message: str
) -> None:
    code = (  # a signal interrupts it also where tests run in the background
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from metaspec_export.cli import main; main()"
    )
    command = [sys.executable, "-c", code, str(checkpoint), "--repository", str(tmp_path / "repository")]
    with subprocess.Popen(
        [*command, "--data", str(data), "--allow-dirty"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "Tracing" in process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert errors.strip() == f"metaspec-export: {message}"
    assert not (tmp_path / "repository").exists()
