"""Hands a finished report over: files in a folder, and a comparison on the screen."""

from collections.abc import Callable, Mapping
from typing import Any

from jserve_tools.documents import write_report, write_whole
from jserve_tools.finished_runs import FinishedRuns
from jserve_tools.report_comparison import compare_reports, comparison_table
from jserve_tools.report_config import ReportConfig


def publish(
    report: Mapping[str, Any],
    config: ReportConfig,
    old_report: Mapping[str, Any] | None,
    runs: FinishedRuns | None,
    *,
    say: Callable[[str], None],
) -> None:
    """Writes report.json and, if wanted, the page and the pictures; compares.

    The report's finished runs have served their purpose then and are removed.

    Args:
      report: as `documents.document` made it.
      config: where to, and what else.
      old_report: to compare with; None for no comparison.
      runs: the finished runs that the report is made of, if they are kept.
      say: prints a line for people.
    """
    say(f"\nreport: {write_report(config.output, report)}")
    if config.html:
        # Drawing takes a second to import.
        from jserve_tools.html_report import html_page, write_figures

        page = config.output / "report.html"
        write_whole(page, html_page(report))
        say(f"page: {page}")
        figures = config.output / "figures"
        write_figures(report, figures)
        say(f"pictures: {figures}")
    if old_report is not None:
        comparison = compare_reports(old_report, report)
        say(f"\n{comparison_table(comparison)}")
    if runs is not None:
        runs.remove()
