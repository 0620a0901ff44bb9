"""One plot of a report, before it is drawn: its words and its data."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """One plot, before it is drawn.

    Attributes:
      name: unlike all others of the page; fit for a file and for an id.
      kind: which way it is drawn; what `html_figures.draw` goes by.
      title: what it shows, in a line.
      caption: how to read it.
      data: all that is drawn, as JSON can hold it.
    """

    name: str
    kind: str
    title: str
    caption: str
    data: Mapping[str, Any]


def plot_name(kind: str, *words: str) -> str:
    """Returns a name of letters, digits and dashes."""
    slugs = [re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words]
    return "-".join([kind, *(slug for slug in slugs if slug)])
