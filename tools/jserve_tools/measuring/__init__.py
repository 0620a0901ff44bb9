"""Measuring: engines and servers under load, and what comes of it."""

__all__ = [
    "baseline",
    "benchmark",
    "breakdown",
    "config",
    "measured_run",
    "targets",
]
