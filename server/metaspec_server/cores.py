"""The number of cores that this process may use: its affinity, within the CPU quotas of its control groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["usable_cores"]


def usable_cores(proc: Path = Path("/proc/self")) -> int:
    """Number of cores that this process may use, at least 1.

    A quota may be that of a container, of Kubernetes or of a systemd unit, in version 1 or 2 of control groups. It holds
    for a group and all below it, so the least of them counts; parts of a core are rounded down.

    Args:
        proc: folder of the process in the proc file system.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cores, *_quotas(proc)])))


def _quotas(proc: Path) -> Iterator[float]:
    """CPU quotas in cores of the process's control groups and of all above them. See cgroups(7)."""
    try:
        groups, mounts = (proc / "cgroup").read_text(), (proc / "mountinfo").read_text()
    except OSError:  # no such file system: not Linux
        return
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):  # version 2 names no controllers
            for root, mount in _mounts(mounts, "cpu" if controllers else None):
                for folder in _lineage(root, mount, path):
                    with suppress(OSError, ValueError):  # no quota
                        yield _quota(folder, "cpu" if controllers else None)


def _mounts(text: str, controller: str | None) -> Iterator[tuple[str, Path]]:
    """Root and mount point of each file system of control groups, those of a controller or of version 2. See proc(5)."""
    for line in text.splitlines():
        mount, _, system = line.partition(" - ")
        root, point = mount.split()[3:5]
        kind, _, options = system.split()[:3]
        if kind == "cgroup2" if controller is None else kind == "cgroup" and controller in options.split(","):
            yield root, Path(point)


def _lineage(root: str, mount: Path, path: str) -> list[Path]:
    """Folders of a control group and of those above it, as far as they are mounted."""
    below = path.removeprefix(root.rstrip("/")) if path.startswith(root) else ""  # a container may not see its own path
    folder = mount / below.lstrip("/")
    if ".." in folder.parts:
        return [mount]
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(mount))]


def _quota(folder: Path, controller: str | None) -> float:
    """CPU quota of a control group in cores.

    Raises:
        OSError: the group has none.
        ValueError: likewise ("max" in version 2).
    """
    if controller is None:
        quota, period = (folder / "cpu.max").read_text().split()
    else:
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    if int(quota) <= 0:  # -1 in version 1
        raise ValueError(f"{folder} has no quota")
    return int(quota) / int(period)
