"""The time loop of the solver: Maxwell's equations on a Yee grid, compiled by numba, one thread.

Periodic in x and y, convolutional perfectly matched layers in z, a Lorentz pole in the solid by an auxiliary differential
equation (Taflove and Hagness, "Computational Electrodynamics", 3rd ed., chapters 3, 7 and 9). Ex lies at (k, j, i + 1/2),
Ey at (k, j + 1/2, i), Ez at (k + 1/2, j, i), and H half a cell from them, (k, j, i) counting cells along z, y and x.
Units: c = epsilon_0 = mu_0 = 1, lengths in um.

Arrays are float32 (z, y * x): each plane of `row` x `row` cells lies flat, with one ghost cell on either side of y and x,
so that a neighbour along x is 1 and a neighbour along y is `row` places away, and each update is one long loop over slices.
It writes rubbish into the ghost cells at the ends of the rows; the ones that are read are filled again by `_wrap`.

One sweep over z updates H and then E of each plane: the new E of plane k needs the new H of k and k - 1 only, and the new
H of k needs the old E of k and k + 1, so every plane passes through the cache once a step. Each loop touches few arrays,
because only then does the compiler check that they do not overlap, and use vector instructions.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

_jit = numba.njit(fastmath=True, cache=True, error_model="numpy", nogil=True)


@_jit
def march(
    steps: int,
    stride: int,
    row: int,
    rx: np.float32,
    rz: np.float32,
    dt: np.float32,
    planes: tuple[int, int, int, int, int],
    inverse_plane: Field,
    inverse_x: Field,
    inverse_y: Field,
    inverse_z: Field,
    drive_x: Field,
    drive_y: Field,
    drive_z: Field,
    stiffness: np.float32,
    decay: Field,
    gain: Field,
    source: Field,
    polarisation: int,
    recorded: Field,
) -> None:
    """Run a pulse through one structure and record Ex and Ey on two planes.

    Args:
        steps: time steps.
        stride: steps between two recordings.
        row: cells along x and along y, ghost cells included.
        rx: dt / dx.
        rz: dt / dz.
        dt: time step.
        planes: z indices of the reflected record, source, top and bottom of the pattern, transmitted record.
        inverse_plane: 1 / permittivity of the uniform z planes, (depth + 1,).
        inverse_x: 1 / permittivity at Ex on the pattern's top face, inside, and on its bottom face, (3, y * x).
        inverse_y: the same at Ey.
        inverse_z: the same at Ez; only the inside is read.
        drive_x: force of Ex on the pole, dt w0^2 times its strength, (3, y * x).
        drive_y: the same at Ey.
        drive_z: the same at Ez.
        stiffness: dt w0^2 of the pole.
        decay: of the absorbing layers' memory, at whole and half cells, (2, depth + 1).
        gain: the same layers' gain; 0 outside them.
        source: amplitude added in each step, (steps,).
        polarisation: 0 for Ex, 1 for Ey.
        recorded: filled with [reflected, transmitted], (2, samples, 2, y * x) with ghost cells, Ex before Ey.
    """
    reflected, start, top, bottom, transmitted = planes
    depth = inverse_plane.shape[0] - 1
    shape, inside = (depth + 1, row * row), (bottom - top + 1, row * row)
    ex, ey, ez = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    hx, hy, hz = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    px, py, pz = np.zeros(inside, np.float32), np.zeros(inside, np.float32), np.zeros(inside, np.float32)
    jx, jy, jz = np.zeros(inside, np.float32), np.zeros(inside, np.float32), np.zeros(inside, np.float32)
    memory_ex, memory_ey = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    memory_hx, memory_hy = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    first, last = row, row * row - row  # all rows but the ghost ones
    for step in range(steps):
        for k in range(depth):
            hx_k, hy_k, hz_k = hx[k, first:last], hy[k, first:last], hz[k, first:last]
            ex_k, ey_k, ez_k = ex[k, first:last], ey[k, first:last], ez[k, first:last]
            ex_next, ey_next = ex[k + 1, first:last], ey[k + 1, first:last]
            _add(hx_k, rz, ey_next, ey_k, rx, ez_k, ez[k, first + row :])
            _add(hy_k, rx, ez[k, first + 1 : last + 1], ez_k, rz, ex_k, ex_next)
            _add(hz_k, rx, ex[k, first + row :], ex_k, rx, ey_k, ey[k, first + 1 : last + 1])
            if gain[1, k] != 0:
                _absorb(hx_k, memory_hx[k, first:last], ey_next, ey_k, decay[1, k], gain[1, k], rz)
                _absorb(hy_k, memory_hy[k, first:last], ex_next, ex_k, decay[1, k], gain[1, k], -rz)
            for h in (hx, hy, hz):
                _wrap(h[k], row, 0, row - 2)
            if k == 0:
                continue  # E of the outermost plane stays 0, behind the absorbing layer
            hx_before, hy_before = hx[k - 1, first:last], hy[k - 1, first:last]
            hz_left, hz_up = hz[k, first - 1 : last - 1], hz[k, : last - row]
            hy_left, hx_up = hy[k, first - 1 : last - 1], hx[k, : last - row]
            scale = inverse_plane[k]
            if top <= k <= bottom:
                layer, p = (0 if k == top else (2 if k == bottom else 1)), k - top
                _polarise(jx[p, first:last], px[p, first:last], ex_k, drive_x[layer, first:last], stiffness, dt)
                _polarise(jy[p, first:last], py[p, first:last], ey_k, drive_y[layer, first:last], stiffness, dt)
                inverse, current = inverse_x[layer, first:last], jx[p, first:last]
                _add_in_pattern(ex_k, inverse, rx, hz_k, hz_up, rz, hy_before, hy_k, dt, current)
                inverse, current = inverse_y[layer, first:last], jy[p, first:last]
                _add_in_pattern(ey_k, inverse, rz, hx_k, hx_before, rx, hz_left, hz_k, dt, current)
            else:
                _add(ex_k, scale * rx, hz_k, hz_up, scale * rz, hy_before, hy_k)
                _add(ey_k, scale * rz, hx_k, hx_before, scale * rx, hz_left, hz_k)
                if gain[0, k] != 0:
                    _absorb(ex_k, memory_ex[k, first:last], hy_before, hy_k, decay[0, k], gain[0, k], scale * rz)
                    _absorb(ey_k, memory_ey[k, first:last], hx_k, hx_before, decay[0, k], gain[0, k], scale * rz)
            if top <= k < bottom:
                p = k - top
                _polarise(jz[p, first:last], pz[p, first:last], ez_k, drive_z[1, first:last], stiffness, dt)
                inverse, current = inverse_z[1, first:last], jz[p, first:last]
                _add_in_pattern(ez_k, inverse, rx, hy_k, hy_left, rx, hx_up, hx_k, dt, current)
            else:
                _add(ez_k, scale * rx, hy_k, hy_left, scale * rx, hx_up, hx_k)
            if k == start:
                driven = ex_k if polarisation == 0 else ey_k
                driven += source[step]
            for e in (ex, ey, ez):
                _wrap(e[k], row, row - 1, 1)
        if step % stride == 0:
            for index, k in enumerate((reflected, transmitted)):
                recorded[index, step // stride, 0] = ex[k]
                recorded[index, step // stride, 1] = ey[k]


@_jit
def _add(out: Field, s: np.float32, a: Field, b: Field, t: np.float32, c: Field, d: Field) -> None:
    """Add one component of a curl: out += s (a - b) + t (c - d)."""
    for i in range(out.size):
        out[i] += s * (a[i] - b[i]) + t * (c[i] - d[i])


@_jit
def _add_in_pattern(
    out: Field,
    inverse: Field,
    s: np.float32,
    a: Field,
    b: Field,
    t: np.float32,
    c: Field,
    d: Field,
    dt: np.float32,
    current: Field,
) -> None:
    """Add one component of (curl - current) / permittivity."""
    for i in range(out.size):
        out[i] += inverse[i] * (s * (a[i] - b[i]) + t * (c[i] - d[i]) - dt * current[i])


@_jit
def _polarise(
    current: Field, polarisation: Field, e: Field, drive: Field, stiffness: np.float32, dt: np.float32
) -> None:
    """Advance the pole: dJ/dt = w0^2 (strength E - P), dP/dt = J."""
    for i in range(current.size):
        current[i] += drive[i] * e[i] - stiffness * polarisation[i]
    for i in range(current.size):
        polarisation[i] += dt * current[i]


@_jit
def _absorb(
    out: Field, memory: Field, a: Field, b: Field, decay: np.float32, gain: np.float32, scale: np.float32
) -> None:
    """Add the absorbing layer's memory of a z difference of the other field."""
    for i in range(out.size):
        memory[i] = decay * memory[i] + gain * (a[i] - b[i])
    for i in range(out.size):
        out[i] += scale * memory[i]


@_jit
def _wrap(plane: Field, row: int, ghost: int, source: int) -> None:
    """Fill ghost row and column number `ghost` of a plane from row and column number `source`."""
    for start in range(0, plane.size, row):
        plane[start + ghost] = plane[start + source]
    for i in range(row):
        plane[ghost * row + i] = plane[source * row + i]
