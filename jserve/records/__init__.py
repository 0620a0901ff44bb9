"""Records: what each step was, kept in memory and in the step log."""

__all__ = ["events", "step_log"]
