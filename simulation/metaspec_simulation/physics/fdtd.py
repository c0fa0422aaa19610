"""The time loop of the solver: Maxwell's equations on a Yee grid, compiled by numba, single-threaded.

Periodic in x and y, convolutional perfectly matched layers in z, a Lorentz pole in the solid by an auxiliary differential
equation (Taflove and Hagness, "Computational Electrodynamics", 3rd ed., chapters 3, 7 and 9). Ex lies at (k, j, i + 1/2),
Ey at (k, j + 1/2, i), Ez at (k + 1/2, j, i), and H half a cell from them, (k, j, i) counting cells along z, y and x.
Units: c = epsilon_0 = mu_0 = 1, lengths in um.

Arrays are float32 (z, y * x): each plane is stored flat, with one ghost row on either side of y, so that a neighbour along x is
1 and a neighbour along y is `row` elements away, and the update of a row is a loop over contiguous elements. At the ends of a
row, the neighbour along x is thereby taken from the next row instead of the other end of the same one, which `_close_h` and
`_close_e` make good.

One sweep over z updates H and then E of each plane: the new E of plane k needs the new H of k and k - 1 only, and the new
H of k needs the old E of k and k + 1. The next step can therefore follow one plane behind, and the one after that behind it:
every plane passes through the cache once for several steps (wavefront blocking; Wellein et al., COMPSAC 2009). Within a plane,
E follows H row by row: E of a row needs H of this row and the one before only, and finds both in the innermost cache. The first
ghost row of H is computed like the others, from the same numbers as the last row, and equals it at all times.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

Field: TypeAlias = NDArray[np.float32]
_Triple: TypeAlias = tuple[Field, Field, Field]
_Quadruple: TypeAlias = tuple[Field, Field, Field, Field]


def jit(function: Any) -> Any:
    """Compile a function when it is first called; kept on disk, where the installation or the user has a folder for it."""
    compiled = partial(numba.njit, fastmath=True, error_model="numpy", nogil=True)
    try:
        return compiled(cache=True)(function)
    except RuntimeError:  # neither folder can be written
        return compiled()(function)


def _inlined(function: Any) -> Any:
    """Compile a function as a part of those that call it: its loop is then checked for overlapping arrays once per plane."""
    return numba.njit(inline="always")(function)


class Mesh(NamedTuple):
    """Extent of the grid in space and time.

    Attributes:
        stride: steps between two recordings.
        row: cells along x and along y.
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

    The patterned layer is described at Ex, Ey and Ez, each (4, y * x): on the plane before the first one of Ex, on that one, on
    those between, and on the last. Ez lies half a cell further along z, and enters the layer on the plane before.

    Attributes:
        inverse_plane: 1 / permittivity of the uniform z planes, (depth + 1,); 0 on the outermost one, where E stays 0.
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
        polarisation: polarisation of the pole at Ex, Ey, Ez from the plane before the patterned layer on.
        current: its time derivative.
        memory: memory of the absorbing layers, for Ex, Ey, Hx, Hy.
    """

    e: _Triple
    h: _Triple
    polarisation: _Triple
    current: _Triple
    memory: _Quadruple


def fields(count: int, shape: tuple[int, int]) -> list[Field]:
    """Arrays of zeros that start at cache lines, 64 bytes, each at another one of the lines of a memory page.

    With 16, 32, 48 ... cells every row starts at a line, too, and no vector of the loops is split between two of them.
    """
    size = -(-shape[0] * shape[1] // 16) * 16 + 240
    memory = np.zeros(count * size + 16, np.float32)
    start = -memory.ctypes.data // 4 % 16
    return [memory[n : n + shape[0] * shape[1]].reshape(shape) for n in range(start, start + count * size, size)]


def new_state(mesh: Mesh, depth: int) -> State:
    """A grid without any field; `depth` is the z index of its last plane."""
    cells = mesh.row * (mesh.row + 2)
    ex, ey, ez, hx, hy, hz, *memory = fields(10, (depth + 1, cells))
    px, py, pz, jx, jy, jz = fields(6, (mesh.bottom - mesh.top + 2, cells))
    return State((ex, ey, ez), (hx, hy, hz), (px, py, pz), (jx, jy, jz), (memory[0], memory[1], memory[2], memory[3]))


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
        recorded: array to fill with [reflected, transmitted] in every `stride`-th step from the first, (2, samples, 2, y * x),
            Ex before Ey; it may have no samples.
    """
    row, depth = mesh.row, medium.inverse_plane.shape[0] - 1
    ex, ey, ez = state.e
    for first in range(0, steps, _STEPS_AT_ONCE):
        at_once = min(_STEPS_AT_ONCE, steps - first)
        for sweep in range(depth + at_once - 1):
            for behind in range(at_once):
                k, step = sweep - behind, first + behind
                if not 0 <= k < depth:
                    continue
                if mesh.top - 1 <= k <= mesh.bottom:
                    _polarise(mesh, medium, state, k)
                elif absorber.gain[0, k] != 0 or absorber.gain[1, k] != 0:
                    _absorb(mesh, medium, absorber, state, k)
                else:
                    _advance(mesh, medium, state, k)
                if k == source and step < sheet.shape[0]:
                    ex[k, row:-row] += sheet[step, 0]
                    ey[k, row:-row] += sheet[step, 1]
                for plane in (ex[k], ey[k], ez[k]):
                    plane[:row] = plane[-2 * row : -row]
                    plane[-row:] = plane[row : 2 * row]
                if step % mesh.stride == 0 and step // mesh.stride < recorded.shape[1]:
                    for index, plane_recorded in enumerate((mesh.reflected, mesh.transmitted)):
                        if k == plane_recorded:
                            recorded[index, step // mesh.stride, 0] = ex[k, row:-row]
                            recorded[index, step // mesh.stride, 1] = ey[k, row:-row]


# Indices within a plane are unsigned: numba then leaves out the test whether they count from the end, which keeps loops from
# being vectorised. Loops read all they need before they store, as a store to one array might, to the compiler, change another.
_ONE = np.uintp(1)


@jit
def _advance(mesh: Mesh, medium: Medium, state: State, k: int) -> None:
    """H and E of one uniform plane: dH/dt = -curl E, dE/dt = curl H / permittivity."""
    row = np.uintp(mesh.row)
    sx, sz = medium.inverse_plane[k] * mesh.rx, medium.inverse_plane[k] * mesh.rz
    (ex, ey, ez), (hx, hy, hz) = state.e, state.h
    for y in range(row + _ONE):
        start = y * row
        _advance_h(mesh, state, k, start, row)
        if y == 0:
            continue
        for x in range(row):
            i = start + x
            u, v, w = hx[k, i], hy[k, i], hz[k, i]
            new_ex = ex[k, i] + (sx * (w - hz[k, i - row]) - sz * (v - hy[k - 1, i]))
            new_ey = ey[k, i] + (sz * (u - hx[k - 1, i]) - sx * (w - hz[k, i - _ONE]))
            new_ez = ez[k, i] + sx * ((v - hy[k, i - _ONE]) - (u - hx[k, i - row]))
            ex[k, i], ey[k, i], ez[k, i] = new_ex, new_ey, new_ez
        _close_e(state, k, start, row, sx, sx)


@jit
def _absorb(mesh: Mesh, medium: Medium, absorber: Absorber, state: State, k: int) -> None:
    """H and E of one plane in an absorbing layer, with the convolution memory in z."""
    row, rx, rz = np.uintp(mesh.row), mesh.rx, mesh.rz
    sx, sz = medium.inverse_plane[k] * rx, medium.inverse_plane[k] * rz
    (ex, ey, ez), (hx, hy, hz) = state.e, state.h
    memory_ex, memory_ey, memory_hx, memory_hy = state.memory
    decay_e, gain_e, shrink_e = absorber.decay[0, k], absorber.gain[0, k], absorber.shrink[0, k]
    decay_h, gain_h, shrink_h = absorber.decay[1, k], absorber.gain[1, k], absorber.shrink[1, k]
    for y in range(row + _ONE):
        start = y * row
        for x in range(row):
            i = start + x
            u, v, w = ex[k, i], ey[k, i], ez[k, i]
            dx, dy = ex[k + 1, i] - u, ey[k + 1, i] - v
            memory_x = decay_h * memory_hx[k, i] + gain_h * dy
            memory_y = decay_h * memory_hy[k, i] + gain_h * dx
            new_hx = hx[k, i] + (rz * (shrink_h * dy + memory_x) - rx * (ez[k, i + row] - w))
            new_hy = hy[k, i] + (rx * (ez[k, i + _ONE] - w) - rz * (shrink_h * dx + memory_y))
            new_hz = hz[k, i] + rx * ((ex[k, i + row] - u) - (ey[k, i + _ONE] - v))
            memory_hx[k, i], memory_hy[k, i] = memory_x, memory_y
            hx[k, i], hy[k, i], hz[k, i] = new_hx, new_hy, new_hz
        _close_h(state, k, start, row, rx)
        if y == 0:
            continue
        for x in range(row):
            i = start + x
            u, v, w = hx[k, i], hy[k, i], hz[k, i]
            dx, dy = u - hx[k - 1, i], v - hy[k - 1, i]
            memory_x = decay_e * memory_ex[k, i] + gain_e * dy
            memory_y = decay_e * memory_ey[k, i] + gain_e * dx
            new_ex = ex[k, i] + (sx * (w - hz[k, i - row]) - sz * (shrink_e * dy + memory_x))
            new_ey = ey[k, i] + (sz * (shrink_e * dx + memory_y) - sx * (w - hz[k, i - _ONE]))
            new_ez = ez[k, i] + sx * ((v - hy[k, i - _ONE]) - (u - hx[k, i - row]))
            memory_ex[k, i], memory_ey[k, i] = memory_x, memory_y
            ex[k, i], ey[k, i], ez[k, i] = new_ex, new_ey, new_ez
        _close_e(state, k, start, row, sx, sx)


@jit
def _polarise(mesh: Mesh, medium: Medium, state: State, k: int) -> None:
    """H and E of one plane in the patterned layer, dE/dt = (curl H - J) / permittivity.

    The pole: dJ/dt = w0^2 (strength E - P), dP/dt = J.
    """
    row, rx, rz, dt, stiffness = np.uintp(mesh.row), mesh.rx, mesh.rz, mesh.dt, medium.stiffness
    (ex, ey, ez), (hx, hy, hz) = state.e, state.h
    (px, py, pz), (jx, jy, jz) = state.polarisation, state.current
    (inverse_x, inverse_y, inverse_z), (drive_x, drive_y, drive_z) = medium.inverse, medium.drive
    p = k - mesh.top + 1
    layer = min(p, 2) if k < mesh.bottom else 3
    for y in range(row + _ONE):
        start = y * row
        _advance_h(mesh, state, k, start, row)
        if y == 0:
            continue
        for x in range(row):
            i = start + x
            j = jx[p, i] + drive_x[layer, i] * ex[k, i] - stiffness * px[p, i]
            curl = rx * (hz[k, i] - hz[k, i - row]) - rz * (hy[k, i] - hy[k - 1, i])
            new, new_p = ex[k, i] + inverse_x[layer, i] * (curl - dt * j), px[p, i] + dt * j
            ex[k, i], px[p, i], jx[p, i] = new, new_p, j
        for x in range(row):
            i = start + x
            j = jy[p, i] + drive_y[layer, i] * ey[k, i] - stiffness * py[p, i]
            curl = rz * (hx[k, i] - hx[k - 1, i]) - rx * (hz[k, i] - hz[k, i - _ONE])
            new, new_p = ey[k, i] + inverse_y[layer, i] * (curl - dt * j), py[p, i] + dt * j
            ey[k, i], py[p, i], jy[p, i] = new, new_p, j
        for x in range(row):
            i = start + x
            j = jz[p, i] + drive_z[layer, i] * ez[k, i] - stiffness * pz[p, i]
            curl = rx * ((hy[k, i] - hy[k, i - _ONE]) - (hx[k, i] - hx[k, i - row]))
            new, new_p = ez[k, i] + inverse_z[layer, i] * (curl - dt * j), pz[p, i] + dt * j
            ez[k, i], pz[p, i], jz[p, i] = new, new_p, j
        _close_e(state, k, start, row, inverse_y[layer, start] * rx, inverse_z[layer, start] * rx)


@_inlined
def _advance_h(mesh: Mesh, state: State, k: int, start: np.uintp, row: np.uintp) -> None:
    """H of one row outside the absorbing layers."""
    rx, rz = mesh.rx, mesh.rz
    (ex, ey, ez), (hx, hy, hz) = state.e, state.h
    for x in range(row):
        i = start + x
        u, v, w = ex[k, i], ey[k, i], ez[k, i]
        new_hx = hx[k, i] + (rz * (ey[k + 1, i] - v) - rx * (ez[k, i + row] - w))
        new_hy = hy[k, i] + (rx * (ez[k, i + _ONE] - w) - rz * (ex[k + 1, i] - u))
        new_hz = hz[k, i] + rx * ((ex[k, i + row] - u) - (ey[k, i + _ONE] - v))
        hx[k, i], hy[k, i], hz[k, i] = new_hx, new_hy, new_hz
    _close_h(state, k, start, row, rx)


@_inlined
def _close_h(state: State, k: int, start: np.uintp, row: np.uintp, rx: np.float32) -> None:
    """Give Hy and Hz at the end of a row the first column of E, where they took that of the next row."""
    (_, ey, ez), (_, hy, hz) = state.e, state.h
    hy[k, start + row - _ONE] += rx * (ez[k, start] - ez[k, start + row])
    hz[k, start + row - _ONE] -= rx * (ey[k, start] - ey[k, start + row])


@_inlined
def _close_e(state: State, k: int, start: np.uintp, row: np.uintp, sy: np.float32, sz: np.float32) -> None:
    """Give Ey and Ez at the start of a row the last column of H, where they took that of the row before.

    `sy` and `sz`: rx / permittivity at Ey and Ez.
    """
    (_, ey, ez), (_, hy, hz) = state.e, state.h
    ey[k, start] += sy * (hz[k, start + row - _ONE] - hz[k, start - _ONE])
    ez[k, start] -= sz * (hy[k, start + row - _ONE] - hy[k, start - _ONE])


@jit
def energy(field: Field, row: int) -> float:
    """Sum of the squares of one component, (planes, y * x), without its ghost rows."""
    total = 0.0
    for plane in field:
        for start in range(row, row * row + row, row):
            partial = np.float32(0)
            for value in plane[start : start + row]:
                partial += value * value
            total += float(partial)
    return total
