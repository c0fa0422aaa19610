"""Free memory of the C library's heap goes back to the operating system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FREED_IN_THE_MIDDLE = """
import psutil
from metaspec_server.core.heap import trim_heap

resident = psutil.Process().memory_info().rss
blocks = [bytes(2**14) for _ in range(4000)]  # 64 MB
last = bytes(2**14)
del blocks
free = psutil.Process().memory_info().rss - resident
trim_heap()
print(free / 2**20, (psutil.Process().memory_info().rss - resident) / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can give memory back")
def test_memory_between_blocks_in_use_is_given_back() -> None:
    result = subprocess.run([sys.executable, "-c", FREED_IN_THE_MIDDLE], capture_output=True, text=True, check=True)
    before, after = map(float, result.stdout.split())
    assert before > 32, "glibc gave it back by itself: this says nothing about trim_heap"
    assert after < 8
