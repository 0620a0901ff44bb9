"""SlidingServe (arXiv 2606.05933): its policy and the three parts of it."""

from jserve_sched.policies.sliding.policy import SlidingServe

__all__ = ["SlidingServe"]
