"""Requests: what was asked for, by when, and how far each has come.

Only what needs no NumPy is imported here, since programs read classes for their flags.
"""

from jserve_sched.requests.service_class import BEST_EFFORT, ServiceClass
from jserve_sched.requests.slo import Slo

__all__ = ["BEST_EFFORT", "ServiceClass", "Slo"]
