"""Packages of extras that are not installed: one line that names the extra, in a fresh interpreter that refuses them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from metaspec import __version__
from metaspec.optimise import NAMES

EXTRAS = {"cma", "contourpy", "gdstk", "imageruler", "klayout", "matplotlib", "pymoo", "scipy"}
FRAMEWORKS = {"torch", "jax", "botorch", "gpytorch", "optax", "invrs_opt", "totypes", "tritonclient", "mcp"}
SERVICES = {"starlette", "uvicorn"}

REFUSE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""
COMMAND = "from metaspec.__main__ import main; main()"


def run_without(names: set[str], program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", REFUSE.format(names=names) + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("package", "what"), [("matplotlib", "figures need"), ("gdstk", "layouts need")])
def test_a_command_names_the_extra(package: str, what: str) -> None:
    done = run_without({package}, COMMAND, "optimise", "--out", "never-written", "--url", "http://127.0.0.1:9")
    line = f'metaspec: {what} {package}: pip install "metaspec[optimise]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_predict_needs_an_extra_only_to_draw() -> None:
    asked = ("predict", "nowhere.npy", "--url", "http://127.0.0.1:9")
    without = run_without(EXTRAS | FRAMEWORKS, COMMAND, *asked)
    assert (without.returncode, without.stdout) == (2, "")
    assert without.stderr == "metaspec: nowhere.npy is missing\n"
    drawn = run_without({"matplotlib"}, COMMAND, *asked, "--plot", "never-written.png")
    line = 'metaspec: figures need matplotlib: pip install "metaspec[optimise]"\n'
    assert (drawn.returncode, drawn.stdout, drawn.stderr) == (2, "", line)


@pytest.mark.parametrize("command", [(), ("predict",), ("optimise",)])
def test_the_help_needs_no_extra(command: tuple[str, ...]) -> None:
    done = run_without(EXTRAS | FRAMEWORKS, COMMAND, *command, "--help")
    assert done.returncode == 0
    assert "Usage: metaspec" in done.stdout


def test_optimise_needs_at_the_start_what_it_needs_at_the_end() -> None:
    done = run_without({"imageruler"}, COMMAND, "optimise", "--out", "never-written", "--url", "http://127.0.0.1:9")
    line = 'metaspec: feature sizes need imageruler: pip install "metaspec[optimise]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_the_version_needs_no_extra() -> None:
    done = run_without(EXTRAS | FRAMEWORKS, COMMAND, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"metaspec {__version__}\n", "")


@pytest.mark.parametrize(("optimiser", "package", "extra"), [("cmaes", "cma", "optimise"), ("torch", "torch", "torch")])
def test_a_command_names_the_extra_of_an_optimiser(optimiser: str, package: str, extra: str) -> None:
    done = run_without({package}, COMMAND, "optimise", "--out", "never-written", "--optimiser", optimiser)
    line = f'metaspec: the optimiser "{optimiser}" needs {package}: pip install "metaspec[{extra}]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_optimisers_name_their_extras() -> None:
    program = f"""
from metaspec.optimise import by_name
for name in {NAMES}:
    try:
        by_name(name)
    except ImportError as error:
        print(error)
"""
    done = run_without(EXTRAS | FRAMEWORKS, program)
    needed = {
        "lbfgs": ("scipy", "optimise"),
        "torch": ("torch", "torch"),
        "optax": ("optax", "optax"),
        "invrs": ("invrs-opt", "invrs"),
        "cmaes": ("cma", "optimise"),
        "de": ("pymoo", "optimise"),
        "ga": ("pymoo", "optimise"),
        "botorch": ("botorch", "botorch"),
    }
    lines = [
        f'the optimiser "{name}" needs {package}: pip install "metaspec[{extra}]"'
        for name, (package, extra) in needed.items()
    ]
    assert done.stdout.splitlines() == lines, done.stderr


def test_modules_name_their_extras() -> None:
    modules = ["torch", "jax", "figures", "gds", "designs", "mcp", "jobs"]
    program = f"""
import importlib
import metaspec, metaspec.colour, metaspec.objectives, metaspec.topology  # the base installation
for name in {modules}:
    try:
        importlib.import_module(f"metaspec.{{name}}")
    except ImportError as error:
        print(error)
try:
    metaspec.Surrogate("grpc://127.0.0.1:8001")
except ImportError as error:
    print(error)
try:
    metaspec.topology.feature_size([[0, 1], [1, 0]])
except ImportError as error:
    print(error)
"""
    done = run_without(EXTRAS | FRAMEWORKS | SERVICES, program)
    assert done.stdout.splitlines() == [
        'metaspec.torch needs torch: pip install "metaspec[torch]"',
        'metaspec.jax needs jax: pip install "metaspec[jax]"',
        'figures need matplotlib: pip install "metaspec[optimise]"',
        'layouts need gdstk: pip install "metaspec[optimise]"',
        'figures need matplotlib: pip install "metaspec[optimise]"',
        'metaspec.mcp needs mcp: pip install "metaspec[mcp]"',
        'metaspec.jobs needs starlette: pip install "metaspec[studio]"',
        'grpc:// needs tritonclient: pip install "metaspec[grpc]"',
        'feature sizes need imageruler: pip install "metaspec[optimise]"',
    ], done.stderr


def test_design_rules_name_their_extra() -> None:
    program = """
import numpy as np
from metaspec.layouts import largest_rules, read_gds, write_gds
write_gds("/dev/null", np.ones((8, 8)))
try:
    largest_rules(np.ones((8, 8)))
except ImportError as error:
    print(error)
"""
    done = run_without({"klayout"}, program)
    assert done.stdout == 'design rule checks need klayout: pip install "metaspec[drc]"\n', done.stderr
