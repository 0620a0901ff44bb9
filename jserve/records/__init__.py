"""Records: what each step was, kept in the step log, shown as a trace."""

__all__ = ["chrome_trace", "events", "step_log"]
