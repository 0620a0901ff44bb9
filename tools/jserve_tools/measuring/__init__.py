"""Measuring: servers under load, and the report of each run."""

__all__ = [
    "baseline",
    "benchmark",
    "config",
    "measured_run",
    "targets",
]
