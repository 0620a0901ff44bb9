"""Training: predictors of step times from samples, and a small model of bytes."""

__all__ = [
    "byte_model",
    "config",
    "library_text",
    "plots",
    "report",
    "samples",
    "step_grid",
]
