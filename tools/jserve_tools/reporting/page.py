"""A report as one HTML page that works from a file, and its charts as pictures.

The page needs no network: it holds Vega's script, which draws every chart from its
specification. Parts for which the report has no data are left out, and all its text is
escaped.
"""

import importlib.resources
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import markupsafe
import vl_convert

from jserve_tools.reporting import rows as report_rows
from jserve_tools.reporting.cells import cells, distinct
from jserve_tools.reporting.charts import (
    FILTERS,
    Chart,
    charts,
    fields,
    overview,
    theme,
)
from jserve_tools.reporting.choice import verdict
from jserve_tools.reporting.documents import write_whole
from jserve_tools.reporting.metrics import numbers
from jserve_tools.reporting.tables import look_up

_FACTS = {
    "Date": "date",
    "Version": "version",
    "Commit": "commit",
    "Device": "device",
    "CPUs": "machine num_cpus",
    "Processor": "machine processor",
    "Model": "server model",
    "JAX": "jax",
    "Trace": "workload trace",
    "Workload": "workload name",
    "Capacity, requests/s": "capacity requests_per_s",
    "Predictor": "predictor",
}


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
    """Returns the page of a report and its charts, UTF-8."""
    known = cells(report)
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters |= {"text": _text, "fields": fields}
    source = importlib.resources.files("jserve_tools.reporting") / "report.html.jinja"
    facts = {name: look_up(report, path.split()) for name, path in _FACTS.items()}
    facts["Date"] = str(facts["Date"] or "")[:16].replace("T", " ") or None
    command = list(report.get("command") or ["jserve"])
    program = pathlib.PurePath(str(command[0])).name
    of = [program, *(facts[name] for name in ("Trace", "Workload", "Device"))]
    values = {name: [cell.labels[name] for cell in known] for name in FILTERS[:3]}
    values["class"] = [name for cell in known for name in cell.service_classes]
    head, *lines = numbers(known)
    page = environment.from_string(source.read_text(encoding="utf-8")).render(
        title=" · ".join(str(word) for word in of if word),
        verdict=verdict(known),
        facts={name: value for name, value in facts.items() if value is not None},
        command=shlex.join(report.get("command", [])),
        filters={
            name: distinct(some) for name, some in values.items() if len(set(some)) > 1
        },
        charts=found,
        specs={one.name: one.spec for one in found},
        themes={"light": theme(is_dark=False), "dark": theme(is_dark=True)},
        messages=report_rows.messages(known),
        numbers=[
            cell.labels | dict(zip(head[1:], line[1:], strict=True))
            for cell, line in zip(known, lines, strict=True)
        ],
        script=markupsafe.Markup(_script()) if found else "",
    )
    return page.encode("utf-8", errors="replace")


def _script() -> str:
    """Returns Vega, Vega-Lite and vega-embed as one script that may stand in HTML."""
    script = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _text(value: Any) -> str:
    """Returns the text of a table's cell; a dash for an empty one."""
    if value is None or value == "":
        return "-"
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".")
    return str(value)
