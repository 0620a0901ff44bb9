"""Compares reports with the page that documents their keys."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests import ROOT

PAGE = ROOT / "tools" / "jserve_tools" / "reporting" / "REPORT.md"
# Keys below these are names of service classes.
NAMED = re.compile(r"(runs\[\]\.(?:by_class|length_error))\.[^.]+")


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Yields the path of every key, as the page writes it."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            here = f"{path}.{name}" if path else str(name)
            yield here
            yield from paths(item, here)
    elif isinstance(value, list):
        for item in value:
            yield from paths(item, f"{path}[]")


def documented() -> set[str]:
    """Returns everything on the page in code style."""
    return set(re.findall(r"`([^`]+)`", PAGE.read_text()))


def undocumented(report: Mapping[str, Any]) -> list[str]:
    """Returns the keys of a report that the page does not document."""
    known = documented()
    covered = tuple(one.removesuffix("*") for one in known if one.endswith(".*"))
    found = []
    for path in dict.fromkeys(paths(report)):
        plain = NAMED.sub(r"\1.NAME", path)
        # A key above documented keys needs no separate line.
        is_parent = any(one.startswith((f"{plain}.", f"{plain}[]")) for one in known)
        if not (plain in known or plain.startswith(covered) or is_parent):
            found.append(path)
    return found
