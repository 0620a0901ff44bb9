"""SLO-aware simulated annealing (arXiv 2504.14966)."""

from jserve_sched.policies.annealing.policy import Annealing

__all__ = ["Annealing"]
