"""Fitting: buckets from the step logs of servers."""

__all__ = ["config", "recorded_fits", "step_logs"]
