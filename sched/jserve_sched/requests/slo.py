"""Service level objectives, and the deadlines that follow from them.

Every deadline is anchored at *arrival*, so that a request which runs ahead banks slack
that the scheduler may spend on others (SlidingServe, arXiv 2606.05933, Eq. 1).
"""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

_BOUNDS = ("ttft_s", "ttft_slowdown", "tbt_s", "tbt_step_multiple", "ttlt_s")


def _check_positive(name: str, value: float | None) -> None:
    if value is not None and not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


class Pacing(NamedTuple):
    """When a request's output tokens are wanted, in clock seconds.

    A token that comes later than this may still be in time: see `Slo.deadline_s`.

    Attributes:
      first_s: Time of the first token; infinite without an objective for it.
      start_s: Token k >= 1 is wanted at `start_s + k * gap_s`.
      gap_s: Time between two tokens.
      last: Later tokens are wanted when this one is: the bound allows no more, and the
        answer was not expected to be longer.
    """

    first_s: float
    start_s: float
    gap_s: float
    last: float = math.inf

    def pace_s(self, index: int) -> float:
        """Returns when output token `index` (from 0) is wanted."""
        if not index:
            return self.first_s
        return self.start_s + min(index, self.last) * self.gap_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slo:
    """The objectives of one request; an absent bound is no objective.

    Attributes:
      ttft_s: Bound on time to first token, seconds from arrival.
      tbt_s: Bound on time between tokens: token k (from 0) is due at
        `arrival + ttft_s + k * tbt_s` (SlidingServe Eq. 1).
      ttlt_s: Bound on time to last token, seconds from arrival.

    Raises:
      ValueError: If a bound is not positive and finite, or `tbt_s` lacks a `ttft_s`.
    """

    ttft_s: float | None = None
    tbt_s: float | None = None
    ttlt_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tbt_s", "ttlt_s"):
            _check_positive(name, getattr(self, name))
        if self.tbt_s is not None and self.ttft_s is None:
            raise ValueError(
                f"tbt_s={self.tbt_s} needs ttft_s: token deadlines start there"
            )

    @property
    def is_best_effort(self) -> bool:
        """Whether there is no objective."""
        return self.ttft_s is None and self.ttlt_s is None

    def deadline_s(self, arrival_s: float, index: int) -> float:
        """Returns after when an absent output token violates a bound, clock seconds.

        `index` is that of the token, from 0.
        """
        due_s = math.inf
        if self.ttft_s is not None and not index:
            due_s = arrival_s + self.ttft_s
        elif self.ttft_s is not None and self.tbt_s is not None:
            due_s = arrival_s + self.ttft_s + index * self.tbt_s
        if self.ttlt_s is not None:
            due_s = min(due_s, arrival_s + self.ttlt_s)
        return due_s

    def pacing(self, arrival_s: float, num_tokens: int) -> Pacing:
        """Returns when a scheduler should want each of `num_tokens` output tokens.

        With a `tbt_s` that is at their deadlines, faster only if the last one
        would come after `ttlt_s`. A `ttlt_s` without a `tbt_s` is spread: the first
        token is wanted at half of that time (or at `ttft_s`), the others evenly from
        half to the end, so that neither the prompt nor the decoding is left for the
        last moment. (Ours; QoServe's artifact paces by a fixed 0.4 s a token, which
        fits one machine.) An answer that grows longer than expected is always taken to
        end with its next token: no token is wanted after `ttlt_s`, and none sooner than
        the last one expected.
        """
        gaps = max(num_tokens - 1, 1)
        first_s = arrival_s + (math.inf if self.ttft_s is None else self.ttft_s)
        if self.ttlt_s is None:
            if self.tbt_s is None:
                return Pacing(first_s, math.inf, 0.0)
            return Pacing(first_s, first_s, self.tbt_s)
        end_s = arrival_s + self.ttlt_s
        if self.tbt_s is not None:
            first_s = min(first_s, end_s)
            left_s = end_s - first_s
            if self.tbt_s >= left_s / gaps:
                return Pacing(first_s, first_s, left_s / gaps, last=gaps)
            last = max(int(left_s / self.tbt_s), gaps)
            return Pacing(first_s, first_s, self.tbt_s, last=last)
        half_s = self.ttlt_s / 2
        start_s = arrival_s + half_s
        return Pacing(min(first_s, start_s), start_s, half_s / gaps, gaps)

    def is_met(
        self, arrival_s: float, token_times_s: Sequence[float], *, is_complete: bool
    ) -> bool:
        """Tells whether every objective was attained.

        Args:
          token_times_s: When each output token came out, ascending.
          is_complete: Whether the request ran to its own end. An incomplete
            request (refused, failed, cut off) has violated its objectives; with
            no objective it has violated nothing.
        """
        if self.is_best_effort:
            return True
        if not is_complete or not token_times_s:
            return False
        if self.ttlt_s is not None and token_times_s[-1] > arrival_s + self.ttlt_s:
            return False
        if self.ttft_s is None:
            return True
        first_due_s, tbt_s = arrival_s + self.ttft_s, self.tbt_s
        if tbt_s is None:
            return token_times_s[0] <= first_due_s
        return all(
            time_s <= first_due_s + k * tbt_s for k, time_s in enumerate(token_times_s)
        )

    def is_met_mean_tpot(
        self, arrival_s: float, token_times_s: Sequence[float], *, is_complete: bool
    ) -> bool:
        """The laxer rule of other benchmarks: TTFT, *mean* TPOT and TTLT bounds."""
        relaxed = dataclasses.replace(self, tbt_s=None)
        if not relaxed.is_met(arrival_s, token_times_s, is_complete=is_complete):
            return False
        if self.tbt_s is None or len(token_times_s) < 2:
            return True
        span_s = token_times_s[-1] - token_times_s[0]
        return span_s / (len(token_times_s) - 1) <= self.tbt_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceClass:
    """A named objective, as an operator writes it down.

    A bound is absolute (`ttft_s`, `tbt_s`, `ttlt_s`) or relative to the machine
    (`ttft_slowdown` times the isolated TTFT of a prompt of that length;
    `tbt_step_multiple` times one isolated decode step); `resolve` makes both
    absolute.

    Attributes:
      name: What `service_tier` selects.
      share: Share of a replayed workload's requests in this class, 0 to 1.
      guard: Whether late requests of this class are still worth guarding
        (SlidingServe's "guard" level; used by policy `sliding`).

    Raises:
      ValueError: If a field is out of range, or two do not go together.
    """

    name: str
    share: float = 0.0
    ttft_s: float | None = None
    ttft_slowdown: float | None = None
    tbt_s: float | None = None
    tbt_step_multiple: float | None = None
    ttlt_s: float | None = None
    guard: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a service class needs a name")
        where = f"class {self.name!r}"
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"{where}: share={self.share} is not in 0..1")
        for name in _BOUNDS:
            _check_positive(f"{where}: {name}", getattr(self, name))
        if self.ttft_s and self.ttft_slowdown:
            raise ValueError(f"{where}: give ttft_s or ttft_slowdown, not both")
        if self.tbt_s and self.tbt_step_multiple:
            raise ValueError(f"{where}: give tbt_s or tbt_step_multiple, not both")
        has_tbt = self.tbt_s or self.tbt_step_multiple
        if has_tbt and not (self.ttft_s or self.ttft_slowdown):
            raise ValueError(
                f"{where}: a tbt bound needs a ttft bound, "
                "since token deadlines start there"
            )

    @property
    def is_relative(self) -> bool:
        """Whether a bound depends on measured times."""
        return self.ttft_slowdown is not None or self.tbt_step_multiple is not None

    def resolve(
        self, *, isolated_ttft_s: float | None = None, step_s: float | None = None
    ) -> Slo:
        """Returns the absolute objective.

        Args:
          isolated_ttft_s: TTFT of this prompt on an idle server, seconds.
          step_s: Duration of one isolated decode step, seconds.

        Raises:
          ValueError: If a relative bound lacks its measurement.
        """
        ttft_s, tbt_s = self.ttft_s, self.tbt_s
        if self.ttft_slowdown is not None:
            idle_s = self._measured("ttft_slowdown", isolated_ttft_s)
            ttft_s = self.ttft_slowdown * idle_s
        if self.tbt_step_multiple is not None:
            tbt_s = self.tbt_step_multiple * self._measured("tbt_step_multiple", step_s)
        return Slo(ttft_s=ttft_s, tbt_s=tbt_s, ttlt_s=self.ttlt_s)

    def _measured(self, bound: str, time_s: float | None) -> float:
        if time_s is None:
            raise ValueError(
                f"class {self.name!r}: {bound}={getattr(self, bound):g} needs a "
                "measured time; give seconds here"
            )
        return time_s


BEST_EFFORT = ServiceClass(name="best_effort", share=1.0)


def parse_service_classes(text: str) -> tuple[ServiceClass, ...]:
    """Reads service classes from JSON: a list of objects with the class's fields.

    Raises:
      ValueError: For anything but a non-empty list of valid, distinct classes.
    """
    try:
        rows: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"service classes are not JSON: {error}") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError("service classes must be a non-empty JSON list of objects")
    classes = tuple(_read_class(row) for row in rows)
    names = [one.name for one in classes]
    if len(set(names)) != len(names):
        raise ValueError(f"service class names repeat: {names}")
    return classes


def _read_class(row: Any) -> ServiceClass:
    """Returns the class that a JSON object describes; a bound may be null."""
    if not isinstance(row, dict):
        raise ValueError(f"a service class must be a JSON object, got {row!r}")
    known = {field.name for field in dataclasses.fields(ServiceClass)}
    if unknown := sorted(set(row) - known):
        raise ValueError(
            f"service class {row.get('name')!r} has unknown fields {unknown}; "
            f"known: {sorted(known)}"
        )
    if not isinstance(row.get("name"), str):
        raise ValueError(f"service class {row}: name is not a string")
    for field, value in row.items():
        if field == "name" or (value is None and field in _BOUNDS):
            continue
        is_guard = field == "guard"
        if isinstance(value, bool) != is_guard or not isinstance(value, int | float):
            words = "true or false" if is_guard else "a number"
            where = f"class {row['name']!r}: {field}={value!r}"
            raise ValueError(f"{where} is not {words}")
    return ServiceClass(**row)
