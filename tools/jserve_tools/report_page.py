"""A report as one HTML page that works from a file, and its charts as pictures.

The page needs no network: Vega's script stands in it once, and every chart is a
specification that it draws. What the report does not have is left out, and every word
of it is escaped.
"""

import importlib.resources
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import markupsafe
import vl_convert

from jserve_tools import report_rows
from jserve_tools.documents import write_whole
from jserve_tools.report_cells import Cell, cells, distinct, look_up
from jserve_tools.report_charts import (
    FILTERS,
    Chart,
    charts,
    fields,
    overview,
    theme,
)
from jserve_tools.report_choice import verdict
from jserve_tools.report_metrics import metrics


def write_page(report: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes report.html, report.png and each chart into figures/; returns the paths.

    Raises:
      ValueError: If the report cannot be read.
    """
    found = charts(report)
    config = theme(is_dark=False) | {"background": "white"}
    files = {"report.html": html_page(report, found)}
    pictures = {f"figures/{one.name}": dict(one.spec) for one in found}
    if found:
        pictures["report"] = overview(found)
    for name, spec in pictures.items():
        svg = vl_convert.vegalite_to_svg(spec | {"config": config})
        files[f"{name}.png"] = vl_convert.svg_to_png(svg, scale=2)
        if name != "report":
            files[f"{name}.svg"] = svg.encode()
    for name, content in files.items():
        write_whole(folder / name, content)
    return [folder / name for name in files]


def html_page(report: Mapping[str, Any], found: Sequence[Chart]) -> bytes:
    """Returns the page, UTF-8.

    Args:
      report: As `documents.document` made it.
      found: Its charts.
    """
    known = cells(report)
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {"text": _text, "fields": fields}
    source = importlib.resources.files("jserve_tools") / "report.html.jinja"
    page = environment.from_string(source.read_text(encoding="utf-8")).render(
        title=_title(report),
        verdict=verdict(known),
        facts=_facts(report),
        command=shlex.join(report.get("command", [])),
        filters=_filters(known),
        charts=found,
        specs={one.name: one.spec for one in found},
        themes={"light": theme(is_dark=False), "dark": theme(is_dark=True)},
        messages=report_rows.messages(known),
        **_numbers(known),
        script=markupsafe.Markup(_script()) if found else "",
    )
    return page.encode("utf-8", errors="replace")


def _script() -> str:
    """Returns Vega, Vega-Lite and vega-embed as one script that may stand in HTML."""
    script = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _text(value: Any) -> str:
    """Returns what a chart's tooltip says; a dash for nothing."""
    if value is None or value == "":
        return "–"  # noqa: RUF001
    return (
        f"{value:,.3f}".rstrip("0").rstrip(".") if type(value) is float else str(value)
    )


def _title(report: Mapping[str, Any]) -> str:
    program = pathlib.PurePath(str((report.get("command") or ["jserve"])[0])).name
    workload = report.get("workload") or {}
    sent = workload.get("trace") or workload.get("name")
    return " ".join(
        [program, *([f"of {sent}"] if sent else [])]
        + ([f"on {report['device']}"] if report.get("device") else [])
    )


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what was measured, on what and with what; unknown facts are absent."""
    machine = report.get("machine") or {}
    capacity = look_up(report, ("capacity", "requests_per_s"))
    workload = report.get("workload") or {}
    found = {
        "Date": str(report.get("date", ""))[:16].replace("T", " "),
        "Version": report.get("version"),
        "Commit": report.get("commit"),
        "Device": report.get("device"),
        "Machine": f"{machine.get('num_cpus')} CPUs, {machine.get('processor')}"
        if machine
        else None,
        "Model": look_up(report, ("server", "model")),
        "JAX": report.get("jax"),
        "Workload": workload.get("trace") or workload.get("name"),
        "Requests a run": report["runs"][0].get("num_requests"),
        "Capacity": capacity and f"{capacity:.3g} requests/s",
        "Planned with": report.get("predictor"),
    }
    return [(name, str(value)) for name, value in found.items() if value]


def _filters(known: Sequence[Cell]) -> dict[str, list[str]]:
    """Returns the values of each filter that has several."""
    values = {
        "policy": distinct([cell.policy for cell in known]),
        "strategy": distinct([cell.bucket_strategy for cell in known]),
        "load": distinct([cell.load for cell in known]),
        "class": sorted({name for cell in known for name in cell.service_classes}),
    }
    assert tuple(values) == FILTERS
    return {name: some for name, some in values.items() if len(some) > 1}


def _numbers(known: Sequence[Cell]) -> dict[str, Any]:
    """Returns the table of all cells: titles of columns, and rows with their texts."""
    shown = metrics(known)
    rows = []
    for cell in known:
        texts = []
        for metric in shown:
            found = metric.estimate(cell)
            text = "–" if found is None else metric.text(found.value)  # noqa: RUF001
            if found is not None and found.low == found.low:
                text += f" ({metric.text(found.low)} to {metric.text(found.high)})"
            texts.append(text)
        rows.append(report_rows.where(cell) | {"texts": texts})
    return {"metrics": [metric.name for metric in shown], "numbers": rows}
