"""A process that ends waits for the callbacks that JAX is still to compute.

JAX computes asynchronously, also what nobody waits for. A thread of JAX that enters Python, or comes back to it, while the
interpreter ends aborts the process ("terminate called without an active exception", exit status 134) or blocks it; seen
with JAX 0.10.2 and Python 3.11, and without code of ours:

    large = jnp.ones((1500, 1500))
    callback = lambda x: jax.pure_callback(lambda x: np.asarray(x), jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    callback(large @ large @ large)   # the last line of a script
"""

from __future__ import annotations

import atexit
import time
from functools import cache

import jax

EXIT_TIMEOUT = 60.0
"""Longest time in seconds that the end of a process waits: a source may be hung."""


@cache
def wait_at_exit() -> None:
    """Let the end of this process wait for what the main thread has JAX compute, at most `EXIT_TIMEOUT`."""
    atexit.register(_wait)  # after JAX's own, which are registered when it is imported: called before them


def _wait() -> None:
    """Wait for a computation on each device: JAX computes what one thread asks for in order."""
    waiting = [jax.device_put(0.0, device) + 1 for device in jax.local_devices()]
    end = time.monotonic() + EXIT_TIMEOUT
    while time.monotonic() < end and not all(array.is_ready() for array in waiting):
        time.sleep(0.01)
