"""Policies: what the next step runs; `registry` knows them by name."""

from jserve_sched.policies.base import Policy
from jserve_sched.policies.registry import POLICIES, make_policy

__all__ = ["POLICIES", "Policy", "make_policy"]
