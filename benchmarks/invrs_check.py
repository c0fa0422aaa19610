"""Independent check of designs with the public package invrs-gym: its own simulation, and its own figures of merit.

invrs-gym poses the Bayer colour router as the challenge `bayer_sorter`. Its component simulates a design by rigorous
coupled-wave analysis (FMMAX), independent of our solver. Here it is given our process: 0.6 um of Si3N4 on SiO2, detectors
2.5 um below, 128 x 128 pixels. Wavelengths are the midpoints of equal steps from 400 to 700 nm: the mean over a band is
accurate to second order.

python benchmarks/invrs_check.py DIR|FILE.npy [--best 1] [--terms 400] [--step-nm 10] [--formulation FFT] [--cells 80]

DIR is a folder of `metaspec optimise`, FILE.npy one structure or several. Writes invrs_check.json into the folder, from which
the same command resumes. Takes minutes per design on one core.

Two details matter:
- invrs-gym reads refractive indices from an archive that it downloads on import. Both of its sources here, Luke et
  al. for Si3N4 and Malitson for SiO2, are Sellmeier formulas: a stand-in module computes them, and nothing is downloaded.
- In its metrics, quadrant 0, where both coordinates are small, is blue, and quadrant 3 is red. Ours are [[R, G1], [G2, B]]:
  the structure is rotated by 180 degrees.
"""

# ruff: noqa: E402 - the stand-in must be in place before invrs-gym is imported

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

# By default, XLA distributes small eigenproblems over threads that contend for few cores.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metaspec_contract.figures_of_merit import colour_efficiency
from metaspec_contract.files import read_array, write_json
from metaspec_contract.process import Process, Sellmeier
from metaspec_contract.run_folder import DESIGNS
from metaspec_contract.structures import PIXELS, check_binary
from metaspec_simulation import Solver

PROCESS = Process()

Array = NDArray[Any]

_SOURCES: dict[tuple[str, str], Sellmeier] = {("Si3N4", "Luke"): PROCESS.solid, ("SiO2", "Malitson"): PROCESS.substrate}


class _Material:
    """Stands in for `refractiveindex2.RefractiveIndexMaterial`, which needs the archive."""

    def __init__(self, shelf: str, book: str, page: str) -> None:
        self.key = book, page

    def get_epsilon(self, wavelength_um: Array) -> Array:
        return _SOURCES[self.key].permittivity(1000 * np.asarray(wavelength_um, np.float64)).astype(complex)


def _stand_in() -> types.ModuleType:
    module = types.ModuleType("refractiveindex2")
    names = {
        "RefractiveIndexMaterial": _Material,
        "refractiveindex": types.SimpleNamespace(NoExtinctionCoefficient=LookupError),
    }
    vars(module).update(names)
    return module


sys.modules["refractiveindex2"] = _stand_in()
jax.config.update("jax_enable_x64", True)  # type: ignore[no-untyped-call]

import jax.numpy as jnp
from fmmax import Formulation
from invrs_gym.challenges.bayer import challenge as bayer
from invrs_gym.challenges.bayer.component import BayerResponse
from totypes.types import Density2DArray


def make_challenge(terms: int, formulation: str) -> bayer.BayerChallenge:
    """invrs-gym's challenge with our thickness, distance and pixels."""
    ranges = bayer.BAYER_SPEC.thickness_metasurface, bayer.BAYER_SPEC.offset_monitor_substrate
    spec = dataclasses.replace(
        bayer.BAYER_SPEC,
        pixel_size=PROCESS.period_um / 2,
        grid_spacing=PROCESS.period_um / PIXELS,
        thickness_metasurface=dataclasses.replace(ranges[0], array=jnp.asarray(PROCESS.thickness_um)),
        offset_monitor_substrate=dataclasses.replace(ranges[1], array=jnp.asarray(PROCESS.distance_um)),
    )
    sim_params = dataclasses.replace(
        bayer.BAYER_SIM_PARAMS, formulation=Formulation[formulation], approximate_num_terms=terms
    )
    return bayer.bayer_sorter(spec=spec, sim_params=sim_params)


def make_simulator(challenge: bayer.BayerChallenge) -> Callable[[Array, int], dict[str, Any]]:
    """A function that simulates a structure at a wavelength in nm.

    Its transmission is (polarisation, quadrant), its reflection (polarisation,).
    """
    spec = challenge.component.spec

    @jax.jit
    def respond(density: jax.Array, wavelength_um: jax.Array) -> BayerResponse:
        params = {
            "thickness_metasurface": spec.thickness_metasurface,
            "offset_monitor_substrate": spec.offset_monitor_substrate,
            "density_metasurface": Density2DArray(density, 0.0, 1.0),
        }
        return challenge.component.response(params, wavelength=wavelength_um)[0]

    def simulate(structure: Array, wavelength_nm: int) -> dict[str, Any]:
        turned = jnp.asarray(np.rot90(structure, 2), jnp.float64)
        response = respond(turned, jnp.array([wavelength_nm / 1000]))
        return {"transmission": response.transmission[0].tolist(), "reflection": response.reflection[0].tolist()}

    return simulate


def colour_metrics(challenge: bayer.BayerChallenge, response: BayerResponse) -> dict[str, float]:
    """Min, R, G and B efficiency, computed by invrs-gym."""
    power = {"transmitted_power": response.transmission.sum(axis=-1)}
    named = challenge.metrics(response, params={"density": Density2DArray(jnp.zeros((2, 2)), 0.0, 1.0)}, aux=power)
    colours = {c[0].upper(): float(named[f"efficiency_{c}_mean"]) for c in ("red", "green", "blue")}
    return {"min": float(challenge.eval_metric(response)), **colours}


def as_response(wavelengths_nm: list[int], transmission: Array, reflection: Array) -> BayerResponse:
    """invrs-gym's response from arrays (W, polarisation, quadrant) and (W, polarisation)."""
    at = jnp.asarray(wavelengths_nm) / 1000
    return BayerResponse(at, jnp.zeros(()), jnp.zeros(()), jnp.asarray(transmission), jnp.asarray(reflection))


def check(
    challenge: bayer.BayerChallenge, kept: dict[str, Any], structure: Array, wavelengths: list[int], cells: int
) -> dict[str, Any]:
    """Figures of merit of a structure by invrs-gym and by us."""
    theirs = {name: np.array([kept[str(w)][name] for w in wavelengths]) for name in ("transmission", "reflection")}
    simulation = Solver(PROCESS, cells).simulate(structure)
    rows = np.searchsorted(simulation.wavelengths_nm, wavelengths)
    ours = simulation.spectra[:, rows].T.astype(np.float64)  # (W, 4): R, G1, G2, B
    in_their_order = np.repeat(ours[:, None, ::-1], 2, axis=1)
    difference = theirs["transmission"].mean(axis=1)[:, ::-1] - ours
    full = colour_efficiency(simulation.spectra[None], simulation.wavelengths_nm)[0].tolist()
    return {
        "invrs-gym": colour_metrics(challenge, as_response(wavelengths, **theirs)),
        "metaspec, their metrics": colour_metrics(
            challenge, as_response(wavelengths, in_their_order, theirs["reflection"])
        ),
        "metaspec, all wavelengths": dict(zip(("min", "R", "G", "B"), [min(full), *full], strict=True)),
        "rms_difference": float(np.sqrt((difference**2).mean())),
        "invrs-gym_energy_error": float(np.abs(theirs["transmission"].sum(axis=-1) + theirs["reflection"] - 1).max()),
    }


def read_structures(path: Path, best: int) -> Array:
    array = read_array(path / DESIGNS if path.is_dir() else path)
    return check_binary(array, name=str(path))[:best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="DIR|FILE.npy")
    parser.add_argument("--best", type=int, default=1, help="number of structures to check, from the first")
    parser.add_argument("--terms", type=int, default=400, help="terms of the Fourier expansion")
    parser.add_argument("--step-nm", type=int, default=10, help="spacing of the wavelengths")
    parser.add_argument("--formulation", choices=[f.name for f in Formulation], default="FFT")
    parser.add_argument("--cells", type=int, default=80, help="cells per period of our solver")
    arguments = parser.parse_args()
    if arguments.step_nm not in (2, 4, 10, 20, 50, 100):
        parser.error(
            f"--step-nm must be even and go into the 100 nm of a band: 2, 4, 10, 20, 50 or 100, got {arguments.step_nm}"
        )

    structures = read_structures(arguments.path, arguments.best)
    wavelengths = list(range(400 + arguments.step_nm // 2, 700, arguments.step_nm))
    challenge = make_challenge(arguments.terms, arguments.formulation)
    folder = arguments.path if arguments.path.is_dir() else arguments.path.parent
    out = folder / "invrs_check.json"
    body = json.loads(out.read_text()) if out.exists() else {"simulated": {}, "checks": []}
    simulate = make_simulator(challenge)
    settings = f"{arguments.formulation} {challenge.component.expansion.num_terms}"

    points = [(s, w) for s in structures for w in wavelengths]
    for structure, wavelength in tqdm(points, desc="invrs-gym", unit="wavelength"):
        kept = body["simulated"].setdefault(f"{hashlib.sha256(structure.tobytes()).hexdigest()[:16]} {settings}", {})
        if str(wavelength) not in kept:
            kept[str(wavelength)] = simulate(structure, wavelength)
            write_json(out, body)

    print(f"{settings} terms, {len(wavelengths)} wavelengths, {wavelengths[0]} to {wavelengths[-1]} nm\n")
    columns = ("min", "R", "G", "B")
    print("| design | | " + " | ".join(columns) + " | rms from invrs-gym |\n" + "|---" * 7 + "|")
    body["checks"] = []
    for number, structure in enumerate(structures):
        kept = body["simulated"][f"{hashlib.sha256(structure.tobytes()).hexdigest()[:16]} {settings}"]
        result = check(challenge, kept, structure, wavelengths, arguments.cells)
        body["checks"].append({"design": number, "settings": vars(arguments) | {"path": arguments.path.name}} | result)
        for name in ("invrs-gym", "metaspec, their metrics", "metaspec, all wavelengths"):
            values = " | ".join(f"{result[name][column]:.4f}" for column in columns)
            rms = f"{result['rms_difference']:.4f}" if name == "metaspec, their metrics" else ""
            print(f"| {number} | {name} | {values} | {rms} |")
    write_json(out, body)


if __name__ == "__main__":
    main()
