"""A report as one HTML page that needs nothing else: no network, no script, no file.

The one idea: the page is a pure function of the JSON report. What the report does not
have is left out, and every word of it is escaped.
"""

import importlib.resources
import io
import pathlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import jinja2
import markupsafe
import matplotlib.figure

from jserve_tools.documents import write_whole
from jserve_tools.html_figures import draw
from jserve_tools.html_panels import digits, figure_style, one_line
from jserve_tools.html_plot import Plot
from jserve_tools.html_plots import plots
from jserve_tools.report_cells import Cell, Share, cells, distinct
from jserve_tools.tables import duration

_SVG = "http://www.w3.org/2000/svg"
_SECTIONS = (
    ("Outcome", ("map", "classes", "pads")),
    ("Start-up and buckets", ("start_up", "staircase")),
    ("Steps", ("step_tokens", "programs")),
)
_FONTS = "'DejaVu Sans', Verdana, Geneva, sans-serif"
_PNG_DPI = 200

Column = tuple[str, str, Callable[[Cell], str | None]]  # group, name, text


def figures(report: Mapping[str, Any]) -> dict[str, matplotlib.figure.Figure]:
    """Returns every figure that a report has data for, by name.

    Raises:
      ValueError: if the report is of a schema that cannot be read.
    """
    return {plot.name: draw(plot) for plot in plots(report)}


def write_figures(
    report: Mapping[str, Any], folder: pathlib.Path
) -> list[pathlib.Path]:
    """Writes every figure as a PNG for papers; returns the paths.

    Raises:
      ValueError: as `figures`.
    """
    paths = []
    for name, figure in figures(report).items():
        picture = io.BytesIO()
        with figure_style():
            figure.savefig(picture, format="png", dpi=_PNG_DPI)
        paths.append(folder / f"{name}.png")
        write_whole(paths[-1], picture.getvalue())
    return paths


def html_page(report: Mapping[str, Any]) -> bytes:
    """Returns the page, UTF-8.

    Raises:
      ValueError: if the report is of a schema that cannot be read.
    """
    known = cells(report)
    drawn = [
        {
            "name": plot.name,
            "kind": plot.kind,
            "title": one_line(plot.title),
            "caption": one_line(plot.caption),
            "data": plot.data,
            "svg": markupsafe.Markup(inline_svg(plot)),
        }
        for plot in plots(report)
    ]
    sections = [
        (title, [plot for plot in drawn if plot["kind"] in kinds])
        for title, kinds in _SECTIONS
    ]
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = importlib.resources.files("jserve_tools") / "report.html.jinja"
    page = environment.from_string(source.read_text(encoding="utf-8")).render(
        title=_title(report, known),
        facts=_facts(report),
        command=shlex.join(report.get("command", [])),
        table=_table(known),
        has_repeats=any(len(cell.runs) > 1 for cell in known),
        sections=[(title, found) for title, found in sections if found],
        programs=_program_tables(known),
    )
    return page.encode("utf-8", errors="replace")


def inline_svg(plot: Plot) -> str:
    """Returns a plot as an SVG element fit to stand in a page beside others.

    Every id begins with the plot's name, so that two plots never share one; sizes are
    left to the page, and there is neither metadata nor a style that leaks out.
    """
    picture = io.BytesIO()
    with figure_style():
        draw(plot).savefig(picture, format="svg")
    root = ElementTree.fromstring(picture.getvalue())
    prefix = f"{plot.name}--"
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        for child in list(element):
            if child.tag.removeprefix(f"{{{_SVG}}}") in ("metadata", "style"):
                element.remove(child)
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            name = key.rpartition("}")[2]  # a plain href does what xlink's did
            element.set(name, _local(name, value, prefix))
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("xmlns", _SVG)
    root.set("role", "img")
    root.set("aria-labelledby", f"title-{plot.name}")
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str, value: str, prefix: str) -> str:
    """Returns an attribute with ids and references of its own."""
    if name == "id":
        return prefix + value
    if name == "href":
        return value.replace("#", f"#{prefix}", 1)
    if name == "style":
        value = re.sub(r"'DejaVu Sans',[^;]*", _FONTS, value)
    return value.replace("url(#", f"url(#{prefix}")


def _title(report: Mapping[str, Any], known: Sequence[Cell]) -> str:
    strategies = len(distinct([cell.bucket_strategy for cell in known]))
    policies = len(distinct([cell.policy for cell in known]))
    program = pathlib.PurePath(str((report.get("command") or ["jserve"])[0])).name
    return (
        f"{program}: {_plural(strategies, 'bucket strategy', 'bucket strategies')}, "
        f"{_plural(policies, 'policy', 'policies')}"
    )


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what was measured, on what and with what; unknown facts are absent."""
    workload = report.get("workload", {})
    machine = report.get("machine", {})
    lengths = [
        f"{workload[key]:.0f} {text}"
        for key, text in (
            ("prompt_tokens_mean", "prompt tokens"),
            ("output_tokens_mean", "output tokens"),
        )
        if key in workload
    ]
    loads = report.get("load", {})
    found = {
        "Device": report.get("device"),
        "Machine": f"{machine.get('num_cpus')} CPUs, {machine.get('processor')}"
        if machine
        else None,
        "Model": report.get("server", {}).get("model"),
        "JAX": report.get("jax"),
        "Commit": report.get("commit"),
        "Workload": workload.get("trace") or workload.get("name"),
        "Requests": workload.get("num_rows") or workload.get("num_requests"),
        "Mean lengths": ", ".join(lengths) or None,
        "Loads": ", ".join(f"{load:g}x" for load in loads.get("loads", ())) or None,
        "Capacity": f"{report['capacity']['requests_per_s']:.3g} requests/s"
        if "requests_per_s" in report.get("capacity", {})
        else None,
        "Planned with": report.get("predictor"),
        "Report schema": report.get("schema_version"),
    }
    return [(name, one_line(str(value))) for name, value in found.items() if value]


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f}%"


def _seconds(*path: str) -> Callable[[Cell], str | None]:
    def text(cell: Cell) -> str | None:
        value = cell.mean(*path)
        return None if value is None else duration(value)

    return text


def _start(kind: str, key: str) -> Callable[[Cell], str | None]:
    def text(cell: Cell) -> str | None:
        value = cell.start_mean(kind, key)
        return None if value is None else duration(value)

    return text


def _total(*path: str) -> Callable[[Cell], str | None]:
    def text(cell: Cell) -> str | None:
        value = cell.total(*path)
        return None if value is None else f"{value:,.0f}"

    return text


def _share(service_class: str | None) -> Callable[[Cell], str | None]:
    def text(cell: Cell) -> str | None:
        share: Share | None = cell.share(service_class)
        if share is None:
            return None
        low, high = share.ci95
        return f"{100 * share.value:.1f}% ({100 * low:.1f} to {100 * high:.1f})"

    return text


def _number(*path: str, form: str = ",.0f") -> Callable[[Cell], str | None]:
    def text(cell: Cell) -> str | None:
        value = cell.mean(*path)
        return None if value is None else format(value, form)

    return text


def _goodput(cell: Cell) -> str | None:
    value = cell.mean("goodput_qps")
    if value is None:
        return None
    interval = cell.first("goodput_ci95_qps")
    if interval is None:
        return digits(value)
    return f"{digits(value)} ({digits(interval[0])} to {digits(interval[1])})"


def _bytes(cell: Cell) -> str | None:
    value = cell.mean("start_up", "executable_bytes")
    return None if value is None else f"{value / 2**20:.1f} MiB"


def _pads(key: str) -> Callable[[Cell], str | None]:
    return lambda cell: _percent(cell.mean(key))


def _columns(known: Sequence[Cell]) -> list[Column]:
    classes = sorted(
        {
            name
            for cell in known
            for run in cell.runs
            for name in run.get("by_class", {})
        }
    )
    met = [("Met every objective", name, _share(name)) for name in classes]
    latencies: list[Column] = [
        (group, quantile, _seconds(key, quantile))
        for group, key in (("TTFT", "ttft_s"), ("TBT", "tbt_s"), ("E2E", "e2e_s"))
        for quantile in ("p50", "p90", "p99")
    ]
    start_ups: list[Column] = [
        (group, name, _start(kind, key))
        for group, kind in (
            ("Start, empty cache", "cold"),
            ("Start, cache full", "cached"),
            ("Start", "other"),
        )
        for name, key in (
            ("ready", "ready_s"),
            ("all programs", "warm_s"),
            ("compiling", "compile_s"),
        )
    ]
    return [
        ("", "load", lambda cell: one_line(cell.load)),
        ("", "requests", _requests),
        ("", "goodput, requests/s", _goodput),
        ("Met every objective", "all", _share(None)),
        *(met if len(met) > 1 else []),
        *latencies,
        ("Padding", "tokens", _pads("pad_share_tokens")),
        ("Padding", "of it buckets", _pads("pad_share_bucket")),
        ("Padding", "of it blocks", _pads("pad_share_block")),
        ("Padding", "time", _pads("pad_share_time")),
        ("Speed", "steps/s", _number("steps_per_s", form=",.1f")),
        ("Speed", "tokens/s", _number("output_tokens_per_s")),
        ("Programs", "number", _number("num_programs")),
        ("Programs", "size", _bytes),
        (
            "Programs",
            "compiled after warm-up",
            _total("num_compiles_after_warmup"),
        ),
        *start_ups,
    ]


def _requests(cell: Cell) -> str | None:
    share = cell.share()
    return None if share is None else str(share.num_requests)


def _table(known: Sequence[Cell]) -> dict[str, Any]:
    """Returns groups of columns, columns and rows; columns without numbers go."""
    filled = []
    for group, name, text in _columns(known):
        column = [text(cell) for cell in known]
        if any(one is not None for one in column):
            filled.append((group, name, column))
    groups: list[tuple[str, int]] = []
    for group, _, _ in filled:
        if groups and groups[-1][0] == group:
            groups[-1] = (group, groups[-1][1] + 1)
        else:
            groups.append((group, 1))
    return {
        "groups": groups,
        "columns": [one_line(name) for _, name, _ in filled],
        "rows": [
            (
                one_line(cell.bucket_strategy),
                one_line(cell.policy),
                [column[row] or "–" for _, _, column in filled],  # noqa: RUF001
            )
            for row, cell in enumerate(known)
        ],
    }


def _program_tables(known: Sequence[Cell]) -> list[tuple[str, list[list[str]]]]:
    """Returns the start-up table of each strategy: a row for each program."""
    found = []
    for strategy in distinct([cell.bucket_strategy for cell in known]):
        here = [cell for cell in known if cell.bucket_strategy == strategy]
        lists = [programs for cell in here for programs in _start_ups(cell)]
        if lists:
            rows = [
                [
                    one_line(str(one.get("program"))),
                    duration(one.get("trace_s")),
                    duration(one.get("compile_s")),
                    _kib(one.get("executable_bytes")),
                    one_line(str(one.get("source", "-"))),
                ]
                for one in lists[0]
            ]
            found.append((one_line(strategy), rows))
    return found


def _start_ups(cell: Cell) -> list[list[Mapping[str, Any]]]:
    return [one for one in cell.values("start_up", "programs") if one]


def _kib(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / 1024:,.0f} KiB"
