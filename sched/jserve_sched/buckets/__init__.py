"""Buckets: the static shapes of a step that are compiled, and strategies for them."""

from jserve_sched.buckets.strategies import STRATEGIES, BucketStrategy, make_strategy
from jserve_sched.buckets.table import Bucket, BucketTable

__all__ = ["STRATEGIES", "Bucket", "BucketStrategy", "BucketTable", "make_strategy"]
