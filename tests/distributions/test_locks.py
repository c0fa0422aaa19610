"""The locks in requirements/: all that the pyproject.toml files ask for, in versions that they allow, and no address."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from metaspec_testing.distributions import PACKAGES, ROOT, read_project

REQUIREMENTS = ROOT / "requirements"
OURS = {read_project(folder)["name"]: folder for folder in [*PACKAGES, "testing"]}


def pins(lock: str) -> dict[str, Version]:
    """The versions of a lock, by package."""
    found = {}
    for line in (REQUIREMENTS / lock).read_text().splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line)  # refuses options, paths and addresses
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"{lock}: {line}"
            assert requirement.url is None, f"{lock}: {line}"
            assert requirement.name not in found, f"{lock}: two versions of {requirement.name}"
            found[requirement.name] = Version(specifier.version)
    return found


def wanted(folder: str, extras: frozenset[str] = frozenset()) -> Iterator[tuple[str, Requirement]]:
    """What a distribution of ours needs from others, and which of ours says so, through all of ours."""
    project = read_project(folder)
    optional = project.get("optional-dependencies", {})
    for text in [*project["dependencies"], *(text for extra in extras for text in optional[extra])]:
        requirement = Requirement(text)
        if requirement.name in OURS:
            yield from wanted(OURS[requirement.name], frozenset(requirement.extras))
        else:
            yield folder, requirement


def assert_satisfied(lock: str, requirement: Requirement, source: str) -> None:
    pin = pins(lock).get(canonicalize_name(requirement.name))
    assert pin is not None, f"{source} needs {requirement}, which requirements/{lock} lacks: make lock"
    allowed = requirement.specifier.contains(pin, prereleases=True)
    assert allowed, f"{source} needs {requirement}, requirements/{lock} has {pin}: make lock"


@pytest.mark.parametrize(("lock", "folder"), [("test.txt", "testing"), ("serve.txt", "server")])
def test_a_lock_has_what_the_distributions_need(lock: str, folder: str) -> None:
    for source, requirement in wanted(folder):
        assert_satisfied(lock, requirement, f"{source}/pyproject.toml")


@pytest.mark.parametrize("name", ["test", "docs", "serve-gpu", "triton"])
def test_a_lock_has_what_its_own_list_asks_for(name: str) -> None:
    lines = (REQUIREMENTS / f"{name}.in").read_text().splitlines()
    asked = [Requirement(line) for line in lines if line[:1].isalpha()]
    assert asked != []
    for requirement in asked:
        assert_satisfied(f"{name}.txt", requirement, f"requirements/{name}.in")


_NOT_LOCKED = {
    ("client", "torch"),  # with the laboratory, only its version can be installed
    ("lab", "numba-cuda"),  # brings the libraries of CUDA
}


@pytest.mark.parametrize("folder", PACKAGES)
def test_the_oldest_lock_has_the_lowest_versions_that_are_allowed(folder: str) -> None:
    oldest = pins("oldest.txt")
    for source, requirement in wanted(folder, frozenset(read_project(folder).get("optional-dependencies", {}))):
        if (source, requirement.name) in _NOT_LOCKED:
            continue
        bound = next(Version(each.version) for each in requirement.specifier if each.operator == ">=")
        pin = oldest[canonicalize_name(requirement.name)]
        assert pin.release[: len(bound.release)] == bound.release, (
            f"{source}/pyproject.toml: {requirement} allows versions below {pin}, the oldest that can be installed"
        )


@pytest.mark.parametrize("lock", ["serve.txt", "docs.txt"])
def test_what_is_used_is_what_was_tested(lock: str) -> None:
    assert pins(lock).items() <= pins("test.txt").items()


def test_the_gpu_image_differs_by_its_runtime_alone() -> None:
    cpu, gpu = pins("serve.txt"), pins("serve-gpu.txt")
    del cpu["onnxruntime"]
    assert cpu.items() <= gpu.items()
    own = gpu.keys() - cpu.keys()
    assert "onnxruntime-gpu" in own
    assert all(name.startswith("nvidia-") for name in own - {"onnxruntime-gpu"}), own
