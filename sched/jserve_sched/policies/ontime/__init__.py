"""On time (ours): serves the largest set of requests that can all be in time."""

from jserve_sched.policies.ontime.policy import OnTime

__all__ = ["OnTime"]
