"""Measuring: engines and servers under load, and the report of each run."""

__all__ = [
    "baseline",
    "benchmark",
    "breakdown",
    "config",
    "measured_run",
    "targets",
]
