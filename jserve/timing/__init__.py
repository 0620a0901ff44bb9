"""Timing: which predictor prices the steps, and what it has learned on disk."""

__all__ = ["checkpoint", "serving_predictor", "step_times"]
