"""Reporting: tables, `report.json`, its page, comparisons, and finished runs."""

__all__ = [
    "cells",
    "charts",
    "choice",
    "comparison",
    "config",
    "documents",
    "finished_runs",
    "metrics",
    "page",
    "publishing",
    "rows",
    "staircases",
    "sweep",
    "tables",
]
