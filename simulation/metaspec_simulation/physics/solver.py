"""The solver: from a binary structure to the spectra of its detectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec_contract.process import Process
from metaspec_contract.structures import InvalidStructure, check_binary
from metaspec_simulation.physics import farfield
from metaspec_simulation.physics.fdtd import Absorber, Medium, Mesh, Pulse, march
from metaspec_simulation.physics.grid import FACE_SHARE, Grid, fill_fractions, make_grid, pml_profile, pulse


@dataclass(frozen=True)
class Simulation:
    """The simulated spectra of one structure.

    Attributes:
        wavelengths_nm: wavelengths in nm, (W,).
        spectra: efficiencies of R, G1, G2, B, float32 (4, W).
        harmonics: Fourier coefficients of the R spectrum under translation of the structure, float32 (81, W); see
            `farfield.shifted_basis`.
        reflection: reflectance, float32 (W,).
    """

    wavelengths_nm: NDArray[np.float64]
    spectra: NDArray[np.float32]
    harmonics: NDArray[np.float32]
    reflection: NDArray[np.float32]

    @property
    def energy_error(self) -> NDArray[np.float32]:
        """Reflection + transmission - 1, (W,): 0 for an exact solution, as nothing absorbs."""
        return self.reflection + self.spectra.sum(axis=0) - 1


class Solver:
    """Finite-difference time-domain solver of one process on one grid.

    Args:
        process: process to simulate.
        cells: grid cells per period: 48 is coarse, 80 is that of the reference labels, 128 is fine.
        tail: recording time after the pulse, um / c; 25 limits the spectral resolution to about 10 nm.

    Example:
        >>> solver = Solver(Process(), cells=48)
        >>> solver.simulate(np.zeros((128, 128))).spectra.shape
        (4, 301)
    """

    def __init__(self, process: Process, cells: int = 64, tail: float = 25.0) -> None:
        self.process = process
        self.grid = make_grid(process, cells, tail)
        self.wavelengths_nm = process.wavelengths_nm
        self._order = farfield.max_order(process)
        index = process.substrate.index(self.wavelengths_nm)
        vacuum = np.ones_like(index)
        eps = self.grid.eps_substrate
        self._below = farfield.PlaneWaves(self.grid, process, self.wavelengths_nm, index, eps, self._order)
        self._above = farfield.PlaneWaves(self.grid, process, self.wavelengths_nm, vacuum, 1.0, self._order)
        self._pulse = pulse(self.grid, process)
        self._incident = self._incident_amplitude()

    def simulate(self, structure: ArrayLike) -> Simulation:
        """Simulate one structure under both polarisations.

        Args:
            structure: binary structure, (128, 128), 0 = void and 1 = solid.

        Raises:
            InvalidStructure: another shape, or values other than 0 and 1.
        """
        back, through = self._recorded(structure)
        grid, zero = self.grid, self._order
        for polarisation in (0, 1):  # the source sheet radiates upwards, too, with the same amplitude
            back[polarisation, :, polarisation, zero, zero] -= 1
        incident_power = self._above.s_scale[:, zero, zero] ** 2
        back = self._above.continuous(back, (grid.top - grid.reflected) * grid.dz - grid.face_um, 0.0)
        through = self._below.continuous(through, self._offset_um, self.process.distance_um)
        reflected = self._power(self._above, back) / incident_power
        flux = farfield.flux_map(through, self._below.magnetic(through)).mean(axis=0) / incident_power[:, None, None]
        harmonics = farfield.window_harmonics(flux).T
        quadrants = farfield.shifted_basis(np.zeros(1, int), np.zeros(1, int))[0]
        return Simulation(
            wavelengths_nm=self.wavelengths_nm,
            spectra=(quadrants @ harmonics).astype(np.float32),
            harmonics=harmonics.astype(np.float32),
            reflection=reflected.astype(np.float32),
        )

    def orders(self, structure: ArrayLike) -> farfield.Complex:
        """Fourier orders of E just under one structure, by simulation.

        Args:
            structure: as for `simulate`.

        Returns:
            complex64 (2, 2, W, ky, kx): polarisation of the incident light (x, y), component of E (x, y), wavelength, orders
            -7..7 in y and x. Amplitudes are relative to the incident wave at the upper face, phases refer to the corner of the
            unit cell. Orders that are evanescent in the substrate are included.

        Raises:
            InvalidStructure: as for `simulate`.
        """
        _, through = self._recorded(structure)
        zero = self._order
        field = self._below.continuous(through, self._offset_um, 0.0).swapaxes(1, 2)
        # Recorded phases are relative to the bare pulse on the same plane, which has crossed the patterned layer and the
        # offset on its way. The phase of the layer is that of real vacuum, without the grid's numerical dispersion.
        offset = self._above.discrete_kz[:, zero, zero] * self._offset_um
        phase = offset + self._above.k0[:, 0, 0] * self.process.thickness_um
        scale = np.exp(1j * phase) / self._above.s_scale[:, zero, zero]
        return (field * scale[:, None, None]).astype(np.complex64)

    @property
    def _offset_um(self) -> float:
        """Distance from the lower face of the patterned layer to the recorded plane under it."""
        return (self.grid.transmitted - self.grid.bottom) * self.grid.dz - self.grid.face_um

    def _recorded(self, structure: ArrayLike) -> tuple[farfield.Complex, farfield.Complex]:
        """Relative amplitudes on the recorded planes above and below, each (2, W, 2, ky, kx)."""
        structures = check_binary(structure, name="structure")
        if len(structures) != 1:
            raise InvalidStructure(f"structure must be a single one, got {len(structures)}")
        binary = structures[0]
        fractions = fill_fractions(binary, self.grid.cells)
        passed = [self._fields(run(self.grid, self._pulse, fractions, polarisation=0))]
        if np.array_equal(binary, binary.T):  # the field of one polarisation is the transpose of the other's
            passed.append(tuple(field[:, ::-1].swapaxes(-1, -2) for field in passed[0]))
        else:
            passed.append(self._fields(run(self.grid, self._pulse, fractions, polarisation=1)))
        back, through = (np.stack(planes) for planes in zip(*passed, strict=True))
        return back, through

    def _fields(self, recorded: NDArray[np.float32]) -> tuple[farfield.Complex, ...]:
        """Relative amplitudes of the orders on the two recorded planes, each (W, 2, ky, kx)."""
        reflected, transmitted = (
            farfield.spectrum(farfield.project(plane, self.grid, self._order), self.grid, self.wavelengths_nm)
            for plane in recorded
        )
        scale = self._incident[:, :, None, None, None]
        return reflected / scale[0], transmitted / scale[1]

    def _incident_amplitude(self) -> farfield.Complex:
        """Amplitude of the bare pulse on the two recorded planes, (2, W), from one column of cells of vacuum."""
        fractions = (np.zeros((1, 1)),) * 3
        recorded = run(self.grid, self._pulse, fractions, polarisation=0, in_vacuum=True)
        reflected, transmitted = (
            farfield.spectrum(plane[:, 0, 0, 0], self.grid, self.wavelengths_nm) for plane in recorded
        )
        return np.stack([reflected, transmitted])

    @staticmethod
    def _power(waves: farfield.PlaneWaves, field: farfield.Complex) -> NDArray[np.floating]:
        """Power of the propagating orders, averaged over the leading polarisation axis: (2, W, 2, ky, kx) to (W,)."""
        magnetic = waves.magnetic(field)
        flux = field[..., 0, :, :] * magnetic[..., 1, :, :].conj() - field[..., 1, :, :] * magnetic[..., 0, :, :].conj()
        return np.where(waves.propagating, flux.real, 0).sum(axis=(-2, -1)).mean(axis=0)


def run(
    grid: Grid,
    source: NDArray[np.float32],
    fractions: tuple[NDArray[np.floating], ...],
    polarisation: int,
    in_vacuum: bool = False,
) -> NDArray[np.float32]:
    """Run the time loop and return the recorded planes, float32 (2, samples, 2, cells, cells).

    Args:
        grid: grid of the run.
        source: amplitude of the pulse in each step, (steps,).
        fractions: share of solid at the nodes of Ex, Ey and Ez, each (cells, cells).
        polarisation: 0 for x, 1 for y.
        in_vacuum: whether to replace the substrate by vacuum.
    """
    below = 1.0 if in_vacuum else grid.eps_substrate
    permittivity = np.where(np.arange(grid.depth + 1) <= grid.bottom, 1.0, below)
    across, along = FACE_SHARE, FACE_SHARE - 0.5  # of the outermost cells of Ex and Ey, and of Ez
    inverse, drive = [], []
    for fraction, at_face in zip(fractions, (across, across, along), strict=True):  # Ex, Ey, Ez
        share = np.array([at_face, 1.0, at_face])[:, None]
        solid = np.pad(fraction, 1, mode="wrap").ravel()
        outside = (1 - share) * np.array([1.0, 1.0, below])[:, None]
        inverse.append((1 / (outside + share * (1 + solid * (grid.eps_solid - 1)))).astype(np.float32))
        drive.append((share * solid * grid.dt * grid.pole_frequency**2 * grid.pole_strength).astype(np.float32))
    row = len(fractions[0]) + 2
    mesh = Mesh(
        steps=grid.steps,
        stride=grid.stride,
        row=row,
        rx=np.float32(grid.dt / grid.dx),
        rz=np.float32(grid.dt / grid.dz),
        dt=np.float32(grid.dt),
        reflected=grid.reflected,
        source=grid.source,
        top=grid.top,
        bottom=grid.bottom,
        transmitted=grid.transmitted,
    )
    medium = Medium(
        inverse_plane=(1 / permittivity).astype(np.float32),
        inverse=(inverse[0], inverse[1], inverse[2]),
        drive=(drive[0], drive[1], drive[2]),
        stiffness=np.float32(grid.dt * grid.pole_frequency**2),
    )
    recorded = np.zeros((2, grid.samples, 2, row * row), np.float32)
    march(mesh, medium, Absorber(*pml_profile(grid)), Pulse(source, polarisation), recorded)
    return recorded.reshape(2, grid.samples, 2, row, row)[..., 1:-1, 1:-1]
