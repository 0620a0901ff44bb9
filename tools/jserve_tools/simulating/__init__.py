"""Simulating: policies side by side, on simulated loads and machines."""

__all__ = ["bucket_fits", "config", "loads", "predictors", "simulation", "sweep"]
