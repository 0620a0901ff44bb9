"""Hands a finished report over: files in a folder, and a comparison on the screen."""

from collections.abc import Callable, Mapping
from typing import Any

from jserve_tools.comparison_flags import ComparisonOptions
from jserve_tools.documents import write_report, write_whole
from jserve_tools.report_comparison import compare_reports, comparison_table
from jserve_tools.run_store import RunStore


def publish(
    report: Mapping[str, Any],
    options: ComparisonOptions,
    store: RunStore | None,
    *,
    say: Callable[[str], None],
) -> None:
    """Writes report.json and, if wanted, the page and the pictures; compares.

    The report's finished runs have served their purpose then and are removed.

    Args:
      report: as `documents.document` made it.
      options: where to, and what else.
      store: of the finished runs that the report is made of, if there is one.
      say: prints a line for people.
    """
    say(f"\nreport: {write_report(options.output, report)}")
    if options.has_html:
        # Drawing takes a second to import.
        from jserve_tools.html_report import html_page, write_figures

        page = options.output / "report.html"
        write_whole(page, html_page(report))
        say(f"page: {page}")
        figures = options.output / "figures"
        write_figures(report, figures)
        say(f"pictures: {figures}")
    if options.old_report is not None:
        comparison = compare_reports(options.old_report, report)
        say(f"\n{comparison_table(comparison)}")
    if store is not None:
        store.remove_used()
