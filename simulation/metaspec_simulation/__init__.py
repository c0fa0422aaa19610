"""From a process and a structure to its spectra: random structures, a broadband FDTD solver and data sets."""

from metaspec_simulation.process import CHANNELS, PIXELS, Process, Sellmeier
from metaspec_simulation.solver import Simulation, Solver

__all__ = ["CHANNELS", "PIXELS", "Process", "Sellmeier", "Simulation", "Solver"]
