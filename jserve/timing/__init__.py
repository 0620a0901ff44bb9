"""Timing: the predictor that prices the steps, and its files on disk."""

__all__ = ["checkpoint", "serving_predictor", "step_times"]
