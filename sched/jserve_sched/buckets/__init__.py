"""Buckets: the static shapes that are compiled, and how they are chosen."""

from jserve_sched.buckets.strategies import STRATEGIES, BucketStrategy, make_strategy
from jserve_sched.buckets.table import Bucket, BucketTable

__all__ = ["STRATEGIES", "Bucket", "BucketStrategy", "BucketTable", "make_strategy"]
