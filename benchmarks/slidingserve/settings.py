"""The settings each row was given, found on a seed that judges nobody.

The one idea: they are a committed file, so that what was tuned, and on what, is
published with the results.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from cells import FULL_STEP_TOKENS, Setup
from rows import Row, Value

from jserve_tools.documents import write_whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for one row on one workload and shape.

    Attributes:
      shape: continuous or buckets.
      workload: its name.
      row: the row's name.
      limit_tokens: most token positions in a step.
      options: values of the row's knobs.
      qps: goodput of the tuning seed with these, requests per second.
      num_tried: settings that were tried.
      seed: the tuning seed.
      num_requests: in each probe.
      commit: of the code that tuned.
    """

    shape: str
    workload: str
    row: str
    limit_tokens: int
    options: Mapping[str, Value]
    qps: float
    num_tried: int
    seed: int
    num_requests: int
    commit: str | None


class Settings:
    """The choices, by shape, workload and row."""

    def __init__(self, choices: Iterable[Choice] = ()):
        self._choices = {(one.shape, one.workload, one.row): one for one in choices}

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All of them, sorted by shape, workload and row."""
        return tuple(one for _, one in sorted(self._choices.items()))

    def updated(self, choices: Iterable[Choice]) -> "Settings":
        """Returns these settings with some choices replaced or added."""
        return Settings([*self.choices, *choices])

    def start_qps(self, shape: str, workload: str, row: Row) -> float | None:
        """Returns a row's goodput on the tuning seed; None if it was not tuned."""
        chosen = self._choices.get((shape, workload, row.name))
        return chosen.qps if chosen is not None and chosen.qps else None

    def setup(self, shape: str, workload: str, row: Row) -> Setup:
        """Returns the server of a row.

        Raises:
          ValueError: if it is to be tuned and was not.
        """
        limit_tokens, options = FULL_STEP_TOKENS, {}
        if row.is_tuned:
            try:
                chosen = self._choices[shape, workload, row.name]
            except KeyError:
                raise ValueError(
                    f"no settings for {row.name!r} on {workload} with {shape} shapes: "
                    "run --stages=tune first"
                ) from None
            limit_tokens, options = chosen.limit_tokens, dict(chosen.options)
        return Setup(
            shape=shape,
            policy=row.spec(options),
            limit_tokens=limit_tokens,
            predictor=row.predictor,
        )


def read_settings(path: pathlib.Path) -> Settings:
    """Reads settings; there are none if the file does not exist.

    Raises:
      ValueError: if the file is no such document.
    """
    if not path.exists():
        return Settings()
    try:
        document: Any = json.loads(path.read_text())
        return Settings(Choice(**one) for one in document["choices"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no settings file: {error!r}") from None


def write_settings(path: pathlib.Path, settings: Settings) -> None:
    """Writes settings, one choice a line."""
    lines = ",\n".join(
        f"  {json.dumps(dataclasses.asdict(one))}" for one in settings.choices
    )
    write_whole(path, f'{{"choices": [\n{lines}\n]}}\n'.encode())
