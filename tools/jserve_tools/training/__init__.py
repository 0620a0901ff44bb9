"""Training: samples of an engine's steps, and predictors of their times."""

__all__ = [
    "config",
    "mlp",
    "plots",
    "report",
    "request_latency",
    "samples",
    "step_grid",
]
