"""Service level objectives, and the deadlines that follow from them.

Every deadline is anchored at *arrival*, so that a request which
runs ahead banks slack that the scheduler may spend on others (SlidingServe,
arXiv 2606.05933, Eq. 1).
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NO_DEADLINE_S = math.inf
NO_LAST = sys.maxsize  # every token has a time of its own
_BOUNDS = ("ttft_s", "ttft_slowdown", "tbt_s", "tbt_step_multiple", "ttlt_s")


def _check_positive(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


class Pacing(NamedTuple):
    """When a request's output tokens are wanted, in clock seconds.

    Attributes:
      first_s: The first token; infinite without an objective for it.
      start_s: Token k >= 1 is wanted at `start_s + k * gap_s`.
      gap_s: Between two tokens.
      end_s: Where tokens are paced towards a completion bound, when that is: no token
        before the last has an objective of its own. None where each one has.
      last: Later tokens are wanted when this one is: the bound allows no more, and the
        answer was not expected to be longer.
    """

    first_s: float
    start_s: float
    gap_s: float
    end_s: float | None = None
    last: int = NO_LAST

    def deadline_s(self, index: int) -> float:
        """Returns when output token `index` (from 0) is wanted."""
        if not index:
            return self.first_s
        return self.start_s + min(index, self.last) * self.gap_s

    def promise_s(self, index: int) -> float:
        """Returns after when output token `index` violates the SLO."""
        due_s = self.deadline_s(index)
        if self.end_s is None or (not index and self.first_s < self.start_s):
            return due_s
        return self.end_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slo:
    """The objectives of one request; an absent bound is no objective.

    Attributes:
      ttft_s: Bound on time to first token, seconds from arrival.
      tbt_s: Bound on time between tokens: token k (from 0) is due at
        `arrival + ttft_s + k * tbt_s`.
      ttlt_s: Bound on time to last token, seconds from arrival.
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

    def token_deadline_s(self, arrival_s: float, index: int) -> float:
        """Returns when output token `index` (from 0) is due, in clock seconds.

        `d(k) = arrival + ttft + k * tbt` (SlidingServe Eq. 1). Without a `tbt_s`
        only the first token has a deadline of its own; a `ttlt_s` bounds every
        token, since no token may come after the last one is due.
        """
        due_s = NO_DEADLINE_S
        if self.ttft_s is not None:
            if self.tbt_s is not None:
                due_s = arrival_s + self.ttft_s + index * self.tbt_s
            elif index == 0:
                due_s = arrival_s + self.ttft_s
        if self.ttlt_s is not None:
            due_s = min(due_s, arrival_s + self.ttlt_s)
        return due_s

    def pacing(self, arrival_s: float, num_tokens: int) -> "Pacing":
        """Returns when a scheduler should want each output token.

        With a `tbt_s` these are the token deadlines, faster only if the last one
        would come after `ttlt_s`. A `ttlt_s` without a `tbt_s` is spread: the first
        token is wanted at half of that time (or at `ttft_s`), the others evenly from
        half to the end, so that neither the prompt nor the decoding is left for the
        last moment. (The papers' interactive classes need no such rule; QoServe's
        artifact paces by a fixed 0.4 s a token, which fits one machine.)

        An answer that grows longer than expected is always taken to end with its next
        token: no token is wanted after `ttlt_s`, and none sooner than the last one
        expected. (Ours.)

        `num_tokens`, 1 or more, is how many output tokens it is expected to have.
        """
        gaps = max(num_tokens - 1, 1)
        first_s = NO_DEADLINE_S if self.ttft_s is None else arrival_s + self.ttft_s
        if self.ttlt_s is None:
            if self.tbt_s is None:
                return Pacing(first_s, NO_DEADLINE_S, 0.0)
            return Pacing(first_s, first_s, self.tbt_s)
        if self.ttft_s is not None and self.tbt_s is not None:
            first_s = min(first_s, arrival_s + self.ttlt_s)
            left_s = arrival_s + self.ttlt_s - first_s
            if self.tbt_s >= left_s / gaps:
                return Pacing(first_s, first_s, left_s / gaps, last=gaps)
            last = max(int(left_s / self.tbt_s), gaps)
            return Pacing(first_s, first_s, self.tbt_s, last=last)
        half_s = self.ttlt_s / 2
        start_s = arrival_s + half_s
        end_s = arrival_s + self.ttlt_s
        return Pacing(min(first_s, start_s), start_s, half_s / gaps, end_s, gaps)

    def is_met(
        self, arrival_s: float, token_times_s: Sequence[float], *, is_complete: bool
    ) -> bool:
        """Tells whether every objective was kept.

        Args:
          arrival_s: When the request arrived.
          token_times_s: When each output token came out, ascending.
          is_complete: Whether the request ran to its own end. An incomplete
            request (refused, failed, cut off) has violated its objectives; with
            no objective it has violated nothing.
        """
        if self.is_best_effort:
            return True
        if not is_complete or not token_times_s:
            return False
        if self.ttft_s is not None and token_times_s[0] > arrival_s + self.ttft_s:
            return False
        if self.ttlt_s is not None and token_times_s[-1] > arrival_s + self.ttlt_s:
            return False
        if self.ttft_s is None or self.tbt_s is None:
            return True
        first_due_s = arrival_s + self.ttft_s
        tbt_s = self.tbt_s
        return all(
            time_s <= first_due_s + k * tbt_s for k, time_s in enumerate(token_times_s)
        )

    def is_met_mean_tpot(
        self, arrival_s: float, token_times_s: Sequence[float], *, is_complete: bool
    ) -> bool:
        """The laxer rule of other benchmarks: TTFT, *mean* TPOT and TTLT bounds."""
        if self.is_best_effort:
            return True
        relaxed = dataclasses.replace(self, tbt_s=None)
        if not relaxed.is_best_effort and not relaxed.is_met(
            arrival_s, token_times_s, is_complete=is_complete
        ):
            return False
        if self.tbt_s is None or len(token_times_s) < 2:
            return is_complete
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
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"class {self.name!r}: share={self.share} is not in 0..1")
        for name in _BOUNDS:
            _check_positive(f"class {self.name!r}: {name}", getattr(self, name))
        for absolute, relative in (
            ("ttft_s", "ttft_slowdown"),
            ("tbt_s", "tbt_step_multiple"),
        ):
            if getattr(self, absolute) is not None and getattr(self, relative):
                raise ValueError(
                    f"class {self.name!r}: give {absolute} or {relative}, not both"
                )
        has_ttft = self.ttft_s is not None or self.ttft_slowdown is not None
        has_tbt = self.tbt_s is not None or self.tbt_step_multiple is not None
        if has_tbt and not has_ttft:
            raise ValueError(
                f"class {self.name!r}: a tbt bound needs a ttft bound, "
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
            if isolated_ttft_s is None:
                raise ValueError(
                    f"class {self.name!r}: ttft_slowdown={self.ttft_slowdown} needs "
                    "a measured TTFT; use ttft_s here"
                )
            ttft_s = self.ttft_slowdown * isolated_ttft_s
        if self.tbt_step_multiple is not None:
            if step_s is None:
                raise ValueError(
                    f"class {self.name!r}: tbt_step_multiple="
                    f"{self.tbt_step_multiple} needs a measured step; use tbt_s here"
                )
            tbt_s = self.tbt_step_multiple * step_s
        return Slo(ttft_s=ttft_s, tbt_s=tbt_s, ttlt_s=self.ttlt_s)


BEST_EFFORT = ServiceClass(name="best_effort", share=1.0)


def _read_class(row: Mapping[str, Any]) -> ServiceClass:
    """Returns a class from a JSON object whose fields are all known.

    Raises:
      ValueError: If the name is missing, or a value is of the wrong type or range.
    """
    name = row.get("name")
    if not isinstance(name, str):
        raise ValueError(f"service class {dict(row)}: name={name!r} is not a string")
    values: dict[str, Any] = {}
    for field, value in row.items():
        if value is None and field in _BOUNDS:
            continue
        is_bool = isinstance(value, bool)
        where = f"class {name!r}: {field}={value!r}"
        if field == "guard" and not is_bool:
            raise ValueError(f"{where} is not true or false")
        if field not in ("name", "guard"):
            if is_bool or not isinstance(value, (int, float)):
                raise ValueError(f"{where} is not a number")
            try:
                float(value)
            except OverflowError:
                raise ValueError(f"class {name!r}: {field} is too large") from None
        values[field] = value
    return ServiceClass(**values)


def parse_service_classes(text: str) -> tuple[ServiceClass, ...]:
    """Reads service classes from JSON: a list of objects with the class's fields.

    Raises:
      ValueError: For anything but a non-empty list of valid, distinct classes.
    """
    try:
        rows: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"service classes are not JSON: {error}") from None
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise ValueError("service classes must be a non-empty JSON list of objects")
    known = {field.name for field in dataclasses.fields(ServiceClass)}
    classes: list[ServiceClass] = []
    for row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(f"a service class must be a JSON object, got {row!r}")
        unknown = sorted(set(row) - known)
        if unknown:
            raise ValueError(
                f"service class {row.get('name')!r} has unknown fields {unknown}; "
                f"known: {sorted(known)}"
            )
        classes.append(_read_class(row))
    names = [one.name for one in classes]
    if len(set(names)) != len(names):
        raise ValueError(f"service class names repeat: {names}")
    return tuple(classes)
