"""Flags that every program has which compares policies and bucket strategies."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from jserve_tools.report_comparison import compare_reports, comparison_table

# absl gives a flag to the module that calls DEFINE_*; this one passes it on.
flags.disclaim_key_flags()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """Those flags, checked.

    Attributes:
      output: folder for the report.
      resumes: whether runs that an interrupted call finished are used.
      has_html: whether to write a page and pictures.
      old_report: to compare with; None for no comparison.
    """

    output: pathlib.Path
    resumes: bool
    has_html: bool
    old_report: Mapping[str, Any] | None

    @property
    def runs_folder(self) -> pathlib.Path:
        """Where finished runs are until the report is published."""
        return self.output / "runs"


def define_comparison_flags(
    *, output: str, output_help: str
) -> Callable[[], ComparisonOptions]:
    """Defines the flags; returns their reader, which raises for a bad value.

    Args:
      output: the default folder.
      output_help: what is written there.
    """
    folder = flags.DEFINE_string("output", output, output_help)
    resume = flags.DEFINE_bool(
        "resume",
        True,
        "Go on where an interrupted call with the same settings and code stopped: its "
        "finished runs are in the folder `runs` in --output until its report is "
        "written; those of other calls stay there. --noresume removes them all.",
    )
    html = flags.DEFINE_bool(
        "html", True, "Write report.html, a page in one file, and pictures in figures/."
    )
    compare = flags.DEFINE_string(
        "compare",
        None,
        "A report.json to compare with: prints what differs, and if it is noise.",
    )

    def read() -> ComparisonOptions:
        return ComparisonOptions(
            output=pathlib.Path(folder.value).expanduser(),
            resumes=resume.value,
            has_html=html.value,
            old_report=None if compare.value is None else read_report(compare.value),
        )

    return read


def read_report(path: str) -> Mapping[str, Any]:
    """Returns a report of an earlier call.

    It is compared with itself, so that no sweep ends in what is wrong with it.

    Raises:
      ValueError: if it is none.
      OSError: if the file cannot be read.
    """
    try:
        text = pathlib.Path(path).expanduser().read_text()
        report: Any = json.loads(text, parse_constant=_refuse_number)
        if not isinstance(report, dict):
            raise ValueError("it is no JSON object")
        comparison_table(compare_reports(report, report))
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"compare={path} is no report: {error}") from None
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(f"compare={path} is no report: {error!r}") from None
    return report


def _refuse_number(name: str) -> float:
    raise ValueError(f"{name} is no number")
