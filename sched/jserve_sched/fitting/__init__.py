"""Fitting: the buckets with the least expected step time for given traffic."""

from jserve_sched.fitting.costs import BucketCosts
from jserve_sched.fitting.demand import StepDemand
from jserve_sched.fitting.fit import fit_buckets

__all__ = ["BucketCosts", "StepDemand", "fit_buckets"]
