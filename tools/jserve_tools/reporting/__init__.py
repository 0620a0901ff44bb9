"""Reporting: tables, `report.json`, its page, and what is resumed from it."""

__all__ = [
    "cells",
    "charts",
    "choice",
    "comparison",
    "config",
    "documents",
    "finished_runs",
    "marked_pages",
    "metrics",
    "page",
    "publishing",
    "rows",
    "staircases",
    "sweep",
    "tables",
]
