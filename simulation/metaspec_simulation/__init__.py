"""From a process and a structure to its spectra: random structures, a broadband FDTD solver and data sets."""

from importlib.metadata import version

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import Process, Sellmeier
from metaspec_contract.structures import PIXELS
from metaspec_simulation.physics.solver import Simulation, Solver

__version__ = version("metaspec-lab")

__all__ = ["CHANNELS", "PIXELS", "Process", "Sellmeier", "Simulation", "Solver", "__version__"]
