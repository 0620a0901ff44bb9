"""Simulation: the scheduler in virtual time, with the duration of steps made up."""

from jserve_sched.simulation.cost_model import CostModel
from jserve_sched.simulation.goodput import Goodput
from jserve_sched.simulation.simulator import SimulationResult, simulate
from jserve_sched.simulation.workload import Arrival

__all__ = ["Arrival", "CostModel", "Goodput", "SimulationResult", "simulate"]
