"""Simulating: loads, machines and policies in the simulator, side by side."""

__all__ = ["bucket_fits", "config", "loads", "predictors", "simulation", "sweep"]
