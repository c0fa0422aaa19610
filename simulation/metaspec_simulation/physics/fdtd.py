"""The time loop of the solver: Maxwell's equations on a Yee grid, compiled by numba, single-threaded.

Periodic in x and y, convolutional perfectly matched layers in z, a Lorentz pole in the solid by an auxiliary differential
equation (Taflove and Hagness, "Computational Electrodynamics", 3rd ed., chapters 3, 7 and 9). Ex lies at (k, j, i + 1/2),
Ey at (k, j + 1/2, i), Ez at (k + 1/2, j, i), and H half a cell from them, (k, j, i) counting cells along z, y and x.
Units: c = epsilon_0 = mu_0 = 1, lengths in um.

Arrays are float32 (z, y * x): each plane of `row` x `row` cells is stored flat, with one ghost cell on either side of y and x,
so that a neighbour along x is 1 and a neighbour along y is `row` elements away, and each update is one long loop over slices.
It writes garbage into the ghost cells at the ends of the rows; those that are read are refilled by `_wrap`.

One sweep over z updates H and then E of each plane: the new E of plane k needs the new H of k and k - 1 only, and the new
H of k needs the old E of k and k + 1. The next step can therefore follow one plane behind, and the one after that behind it:
every plane passes through the cache once for several steps (wavefront blocking; Wellein et al., COMPSAC 2009).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.float32]
_Pair: TypeAlias = tuple[Field, Field]
_Triple: TypeAlias = tuple[Field, Field, Field]
_Quadruple: TypeAlias = tuple[Field, Field, Field, Field]


def jit(function: Any) -> Any:
    """Compile a function when it is first called; kept on disk, where the installation or the user has a folder for it."""
    compiled = partial(numba.njit, fastmath=True, error_model="numpy", nogil=True)
    try:
        return compiled(cache=True)(function)
    except RuntimeError:  # neither folder can be written
        return compiled()(function)


class Mesh(NamedTuple):
    """Extent of the grid in space and time.

    Attributes:
        stride: steps between two recordings.
        row: cells along x and along y, ghost cells included.
        rx: dt / dx.
        rz: dt / dz.
        dt: time step.
        reflected: z index of the plane, above the source, that is recorded.
        top: z index of the first plane of Ex and Ey in the patterned layer.
        bottom: z index of the last one.
        transmitted: z index of the plane, below the patterned layer, that is recorded.
    """

    stride: int
    row: int
    rx: np.float32
    rz: np.float32
    dt: np.float32
    reflected: int
    top: int
    bottom: int
    transmitted: int


class Medium(NamedTuple):
    """The material at each node of E.

    The patterned layer is described at Ex, Ey and Ez, each (3, y * x): on its first plane, on those between, and on its last.
    Ez has one plane more than Ex and Ey: from half a cell before the first plane of Ex to half a cell after the last.

    Attributes:
        inverse_plane: 1 / permittivity of the uniform z planes, (depth + 1,).
        inverse: 1 / permittivity in the patterned layer.
        drive: force of E on the pole, dt w0^2 times its strength.
        stiffness: dt w0^2 of the pole.
    """

    inverse_plane: Field
    inverse: _Triple
    drive: _Triple
    stiffness: np.float32


class Absorber(NamedTuple):
    """The absorbing layers, at whole and half cells.

    Attributes:
        decay: decay of their memory per step, (2, depth + 1).
        gain: gain of their memory, (2, depth + 1); 0 outside the layers.
        shrink: factor of derivatives along z, (2, depth + 1); 1 outside the layers.
    """

    decay: Field
    gain: Field
    shrink: Field


class State(NamedTuple):
    """All that the next time step depends on.

    Attributes:
        e: Ex, Ey, Ez, each (depth + 1, y * x).
        h: Hx, Hy, Hz, of the same shape.
        polarisation: polarisation of the pole at Ex, Ey, Ez in the patterned layer.
        current: its time derivative.
        memory: memory of the absorbing layers, for Ex, Ey, Hx, Hy.
    """

    e: _Triple
    h: _Triple
    polarisation: _Triple
    current: _Triple
    memory: _Quadruple


def new_state(mesh: Mesh, depth: int) -> State:
    """A grid without any field; `depth` is the z index of its last plane."""
    cells = mesh.row * mesh.row
    whole, layer = (depth + 1, cells), (mesh.bottom - mesh.top + 2, cells)

    def triple(shape: tuple[int, int]) -> _Triple:
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    memory = (*triple(whole), np.zeros(whole, np.float32))
    return State(triple(whole), triple(whole), triple(layer), triple(layer), memory)


_STEPS_AT_ONCE = 4
"""Time steps that follow each other through the grid in one sweep; their planes fit into a cache of 2 MB up to 80 cells."""


@jit
def march(
    mesh: Mesh,
    medium: Medium,
    absorber: Absorber,
    state: State,
    steps: int,
    source: int,
    sheet: Field,
    recorded: Field,
) -> None:
    """Advance the field by some time steps, add the light of a source, and record Ex and Ey on two planes.

    Args:
        mesh: extent of the grid.
        medium: materials.
        absorber: absorbing layers.
        state: field, updated in place.
        steps: number of time steps.
        source: z index of the source plane.
        sheet: amplitudes to add to Ex and Ey there in the first of these steps, (at most steps, 2, y * x).
        recorded: array to fill with [reflected, transmitted] in every `stride`-th step from the first, (2, samples, 2, y * x)
            with ghost cells, Ex before Ey; it may have no samples.
    """
    row, rx, rz, dt, top, bottom = mesh.row, mesh.rx, mesh.rz, mesh.dt, mesh.top, mesh.bottom
    inverse_plane, stiffness = medium.inverse_plane, medium.stiffness
    (inverse_x, inverse_y, inverse_z), (drive_x, drive_y, drive_z) = medium.inverse, medium.drive
    decay, gain, shrink = absorber.decay, absorber.gain, absorber.shrink
    depth = inverse_plane.shape[0] - 1
    (ex, ey, ez), (hx, hy, hz) = state.e, state.h
    (px, py, pz), (jx, jy, jz) = state.polarisation, state.current
    memory_ex, memory_ey, memory_hx, memory_hy = state.memory
    a, b = row, row * row - row  # all rows but the ghost ones
    for first in range(0, steps, _STEPS_AT_ONCE):
        at_once = min(_STEPS_AT_ONCE, steps - first)
        for sweep in range(depth + at_once - 1):
            for behind in range(at_once):
                k, step = sweep - behind, first + behind
                if not 0 <= k < depth:
                    continue
                e = (ex[k, a:b], ey[k, a:b], ez[k, a:b])
                e_next = (ex[k + 1, a:b], ey[k + 1, a:b])
                e_aside = (ex[k, a + row :], ez[k, a + row :], ey[k, a + 1 : b + 1], ez[k, a + 1 : b + 1])
                h = (hx[k, a:b], hy[k, a:b], hz[k, a:b])
                if gain[1, k] != 0:
                    memory = (memory_hx[k, a:b], memory_hy[k, a:b])
                    _absorb_h(h, e, e_next, e_aside, rx, rz, memory, decay[1, k], gain[1, k], shrink[1, k])
                else:
                    _advance_h(h, e, e_next, e_aside, rx, rz)
                for plane in (hx, hy, hz):
                    _wrap(plane[k], row, 0, row - 2)
                if k == 0:
                    continue  # E of the outermost plane stays 0, behind the absorbing layer
                h_before = (hx[k - 1, a:b], hy[k - 1, a:b])
                h_aside = (hx[k, : b - row], hz[k, : b - row], hy[k, a - 1 : b - 1], hz[k, a - 1 : b - 1])
                sx, sz = inverse_plane[k] * rx, inverse_plane[k] * rz
                if top - 1 <= k <= bottom:
                    if k >= top:
                        layer, p = (0 if k == top else (2 if k == bottom else 1)), k - top
                        pole = (jx[p, a:b], px[p, a:b], drive_x[layer, a:b])
                        curl = (rx, h[2], h_aside[1], rz, h_before[1], h[1])
                        _polarise(e[0], inverse_x[layer, a:b], curl, pole, dt, stiffness)
                        pole = (jy[p, a:b], py[p, a:b], drive_y[layer, a:b])
                        curl = (rz, h[0], h_before[0], rx, h_aside[3], h[2])
                        _polarise(e[1], inverse_y[layer, a:b], curl, pole, dt, stiffness)
                    else:
                        _advance_transverse(e, h, h_before, h_aside, sx, sz)
                    layer, p = (0 if k == top - 1 else (2 if k == bottom else 1)), k - top + 1
                    pole = (jz[p, a:b], pz[p, a:b], drive_z[layer, a:b])
                    curl = (rx, h[1], h_aside[2], rx, h_aside[0], h[0])
                    _polarise(e[2], inverse_z[layer, a:b], curl, pole, dt, stiffness)
                elif gain[0, k] != 0:
                    memory = (memory_ex[k, a:b], memory_ey[k, a:b])
                    _absorb_e(e, h, h_before, h_aside, sx, sz, memory, decay[0, k], gain[0, k], shrink[0, k])
                else:
                    _advance_e(e, h, h_before, h_aside, sx, sz)
                if k == source and step < sheet.shape[0]:
                    ex[k] += sheet[step, 0]
                    ey[k] += sheet[step, 1]
                for plane in (ex, ey, ez):
                    _wrap(plane[k], row, row - 1, 1)
                if step % mesh.stride == 0 and step // mesh.stride < recorded.shape[1]:
                    for index, plane_recorded in enumerate((mesh.reflected, mesh.transmitted)):
                        if k == plane_recorded:
                            recorded[index, step // mesh.stride, 0] = ex[k]
                            recorded[index, step // mesh.stride, 1] = ey[k]


@jit
def _advance_h(h: _Triple, e: _Triple, e_next: _Pair, e_aside: _Quadruple, rx: np.float32, rz: np.float32) -> None:
    """H of one plane: dH/dt = -curl E. `e_aside`: Ex and Ez of the next row, Ey and Ez of the next column."""
    (hx, hy, hz), (ex, ey, ez), (ex_next, ey_next) = h, e, e_next
    ex_up, ez_up, ey_right, ez_right = e_aside
    for i in range(hx.size):
        hx[i] += rz * (ey_next[i] - ey[i]) - rx * (ez_up[i] - ez[i])
        hy[i] += rx * (ez_right[i] - ez[i]) - rz * (ex_next[i] - ex[i])
        hz[i] += rx * ((ex_up[i] - ex[i]) - (ey_right[i] - ey[i]))


@jit
def _absorb_h(
    h: _Triple,
    e: _Triple,
    e_next: _Pair,
    e_aside: _Quadruple,
    rx: np.float32,
    rz: np.float32,
    memory: _Pair,
    decay: np.float32,
    gain: np.float32,
    shrink: np.float32,
) -> None:
    """Update H of one plane in an absorbing layer, with the convolution memory in z."""
    (hx, hy, hz), (ex, ey, ez), (ex_next, ey_next) = h, e, e_next
    ex_up, ez_up, ey_right, ez_right = e_aside
    memory_x, memory_y = memory
    for i in range(hx.size):
        dy, dx = ey_next[i] - ey[i], ex_next[i] - ex[i]
        memory_x[i] = decay * memory_x[i] + gain * dy
        memory_y[i] = decay * memory_y[i] + gain * dx
        hx[i] += rz * (shrink * dy + memory_x[i]) - rx * (ez_up[i] - ez[i])
        hy[i] += rx * (ez_right[i] - ez[i]) - rz * (shrink * dx + memory_y[i])
        hz[i] += rx * ((ex_up[i] - ex[i]) - (ey_right[i] - ey[i]))


@jit
def _advance_e(e: _Triple, h: _Triple, h_before: _Pair, h_aside: _Quadruple, sx: np.float32, sz: np.float32) -> None:
    """E of one plane: dE/dt = curl H / permittivity. `h_aside`: Hx and Hz of the row, Hy and Hz of the column before."""
    (ex, ey, ez), (hx, hy, hz), (hx_before, hy_before) = e, h, h_before
    hx_down, hz_down, hy_left, hz_left = h_aside
    for i in range(ex.size):
        ex[i] += sx * (hz[i] - hz_down[i]) - sz * (hy[i] - hy_before[i])
        ey[i] += sz * (hx[i] - hx_before[i]) - sx * (hz[i] - hz_left[i])
        ez[i] += sx * ((hy[i] - hy_left[i]) - (hx[i] - hx_down[i]))


@jit
def _advance_transverse(
    e: _Triple, h: _Triple, h_before: _Pair, h_aside: _Quadruple, sx: np.float32, sz: np.float32
) -> None:
    """Update Ex and Ey of one plane."""
    (ex, ey, _), (hx, hy, hz), (hx_before, hy_before) = e, h, h_before
    _, hz_down, _, hz_left = h_aside
    for i in range(ex.size):
        ex[i] += sx * (hz[i] - hz_down[i]) - sz * (hy[i] - hy_before[i])
        ey[i] += sz * (hx[i] - hx_before[i]) - sx * (hz[i] - hz_left[i])


@jit
def _absorb_e(
    e: _Triple,
    h: _Triple,
    h_before: _Pair,
    h_aside: _Quadruple,
    sx: np.float32,
    sz: np.float32,
    memory: _Pair,
    decay: np.float32,
    gain: np.float32,
    shrink: np.float32,
) -> None:
    """E of one plane in an absorbing layer."""
    (ex, ey, ez), (hx, hy, hz), (hx_before, hy_before) = e, h, h_before
    hx_down, hz_down, hy_left, hz_left = h_aside
    memory_x, memory_y = memory
    for i in range(ex.size):
        dy, dx = hy[i] - hy_before[i], hx[i] - hx_before[i]
        memory_x[i] = decay * memory_x[i] + gain * dy
        memory_y[i] = decay * memory_y[i] + gain * dx
        ex[i] += sx * (hz[i] - hz_down[i]) - sz * (shrink * dy + memory_x[i])
        ey[i] += sz * (shrink * dx + memory_y[i]) - sx * (hz[i] - hz_left[i])
        ez[i] += sx * ((hy[i] - hy_left[i]) - (hx[i] - hx_down[i]))


@jit
def _polarise(
    e: Field,
    inverse: Field,
    curl: tuple[np.float32, Field, Field, np.float32, Field, Field],
    pole: _Triple,
    dt: np.float32,
    stiffness: np.float32,
) -> None:
    """One component of E in the patterned layer, += (s (a - b) + t (c - d) - dt J) / permittivity.

    The pole: dJ/dt = w0^2 (strength E - P), dP/dt = J.
    """
    s, a, b, t, c, d = curl
    current, polarisation, drive = pole
    for i in range(e.size):
        j = current[i] + drive[i] * e[i] - stiffness * polarisation[i]
        current[i] = j
        polarisation[i] += dt * j
        e[i] += inverse[i] * (s * (a[i] - b[i]) + t * (c[i] - d[i]) - dt * j)


@jit
def _wrap(plane: Field, row: int, ghost: int, source: int) -> None:
    """Fill ghost row and column number `ghost` of a plane from row and column number `source`."""
    for start in range(0, plane.size, row):
        plane[start + ghost] = plane[start + source]
    for i in range(row):
        plane[ghost * row + i] = plane[source * row + i]


@jit
def energy(field: Field, row: int) -> float:
    """Sum of the squares of one component, ghost cells left out: (planes, y * x)."""
    total = 0.0
    for plane in field:
        for start in range(row, row * row - row, row):
            partial = np.float32(0)
            for value in plane[start + 1 : start + row - 1]:
                partial += value * value
            total += float(partial)
    return total
