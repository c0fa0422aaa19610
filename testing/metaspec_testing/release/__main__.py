"""Make a release from this clone: build the four distributions, check, install and test what would be uploaded, write notes.

    make release

Writes build/release/VERSION with the folder `dist` (what is uploaded) and `NOTES.md`, whole or not at all. It needs the
development environment, which builds the archives and has what they need to be installed, and no index of packages.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from metaspec_contract.files import write_text
from metaspec_testing.distributions import PACKAGES, ROOT, Archives, Environment, build
from metaspec_testing.release import changelog, metadata, version

QUICK = ["--dist", "loadgroup", "--no-loadscope-reorder", "-m", "not slow and not triton and not gpu"]
ORIGINS = "import importlib.util as u, sys; print(*(u.find_spec(name).origin for name in sys.argv[1:]), sep='\\n')"


def refuse_unready(release: str, tagged: bool, root: Path) -> None:
    """Refuse a clone that no release can be made from.

    Args:
        release: version of the release.
        tagged: whether the release's tag must name this commit; otherwise there must be no such tag.
        root: folder of the clone.

    Raises:
        ValueError: files are uncommitted, or the tag is not as expected.
    """

    def git(*arguments: str) -> list[str]:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    if changed := [line[3:] for line in git("status", "--porcelain")]:
        raise ValueError(f"commit or remove {', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''} first")
    tag = f"v{release}"
    if tagged and tag not in git("tag", "--points-at", "HEAD"):
        raise ValueError(f"expected the tag {tag} at this commit")
    if not tagged and git("tag", "--list", tag):
        raise ValueError(f"the tag {tag} exists: `make version VERSION=X.Y.Z` starts the next release")


def build_all(folder: Path) -> list[Archives]:
    """Build all distributions into one folder."""
    built = [build(ROOT / name, folder / name) for name in PACKAGES]
    return [Archives(*(Path(shutil.move(path, folder)) for path in (each.wheel, each.sdist))) for each in built]


def run_tests(python: Path | str, *arguments: str) -> None:
    """Run pytest on a part of the tests.

    Raises:
        ValueError: a test failed.
    """
    if subprocess.run([python, "-P", "-m", "pytest", "-q", *arguments], cwd=ROOT, check=False).returncode != 0:
        raise ValueError(f"these tests failed: pytest {' '.join(arguments)}")


def try_wheels(wheels: list[Path], scratch: Path, workers: str) -> None:
    """Run the quick suite in an environment that holds the wheels, and nothing of the clone's packages.

    Raises:
        ValueError: a test failed, or one of the packages would be imported from elsewhere.
    """
    environment = Environment(scratch / "environment")
    environment.install_over_this(*wheels)
    names = [Path(package).name for packages in PACKAGES.values() for package in packages]
    origins = environment.run("python", "-P", "-c", ORIGINS, *names).stdout.splitlines()
    inside = environment.programs.parent.resolve()
    if len(origins) != len(names) or not all(Path(origin).resolve().is_relative_to(inside) for origin in origins):
        raise ValueError(f"expected packages from the wheels, got {origins}")
    python = environment.programs / "python"
    run_tests(python, *QUICK, "-n", workers, "--ignore", "tests/distributions", "tests")


def make(release: str, target: Path, workers: str) -> None:
    """Build, check and test a release, and put it into a folder, replacing what is there."""
    notes = changelog.notes((ROOT / "CHANGELOG.md").read_text(), release)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as folder:
        scratch = Path(folder)
        made = scratch / "made"
        archives = build_all(scratch / "built")
        for each in archives:
            metadata.check(each, release)
        (made / "dist").mkdir(parents=True)
        for each in archives:
            for path in (each.wheel, each.sdist):
                shutil.move(path, made / "dist")
        write_text(made / "NOTES.md", notes)
        run_tests(sys.executable, "--archives", str(made / "dist"), "tests/distributions")
        try_wheels(sorted((made / "dist").glob("*.whl")), scratch, workers)
        if target.exists():
            target.rename(scratch / "before")
        made.rename(target)


def main() -> None:
    """Make the release that the changelog and the pyproject.toml files state."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__.partition("\n")[0])
    parser.add_argument("--tagged", action="store_true", help="the tag of the release exists and names this commit")
    parser.add_argument("--workers", default="2", help="processes that the tests run in")
    arguments = parser.parse_args()
    release = version.current()
    target = ROOT / "build" / "release" / release
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        refuse_unready(release, arguments.tagged, ROOT)
        make(release, target, arguments.workers)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"make release: {error}") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"make release: {error}\n{error.stderr}") from None
    except KeyboardInterrupt:
        print("make release: interrupted, nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"{target.relative_to(ROOT)} holds release {release}.")
    if not arguments.tagged:
        print(f"To publish it: git tag --annotate v{release} && git push origin v{release}")


if __name__ == "__main__":
    main()
