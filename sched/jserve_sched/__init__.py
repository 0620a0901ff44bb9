"""The scheduler: requests, objectives, buckets, KV accounting and policies.

Imports the standard library, NumPy and SciPy only, so that every decision can be tested
in milliseconds and simulated without an accelerator runtime.
"""
