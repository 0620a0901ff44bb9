"""Requests: what was asked for, by when, and how far each has come.

Only what needs no NumPy is imported here, since programs read classes for their flags.
"""

from jserve_sched.requests.slo import BEST_EFFORT, ServiceClass, Slo

__all__ = ["BEST_EFFORT", "ServiceClass", "Slo"]
