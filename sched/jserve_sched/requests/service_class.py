"""Service classes: objectives by name, as an operator writes them down."""

import dataclasses
import json
from typing import Any, Literal, get_args

from jserve_sched.requests.slo import Slo, check_bound

AdmissionRule = Literal["queue", "refuse", "degrade"]
_BOUNDS = ("ttft_s", "ttft_slowdown", "tbt_s", "tbt_step_multiple", "ttlt_s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceClass:
    """A named objective, as an operator writes it down.

    A bound is absolute (`ttft_s`, `tbt_s`, `ttlt_s`) or relative to the machine
    (`ttft_slowdown` times the isolated TTFT of a prompt of that length;
    `tbt_step_multiple` times one isolated decode step); `resolve` makes both
    absolute.

    Attributes:
      share: Share of a replayed workload's requests in this class, 0 to 1.
      guard: Whether late requests of this class are still worth guarding
        (SlidingServe's "guard" level; used by policy `sliding`).
      weight: What a violation counts, against one of weight 1: the class with most
        weight for its work is kept in time first (policy `ontime`).
      admission: What is done with requests that cannot be attained: see `admission`.
        Without a bound, only for `custom`: requests that bring their own SLO.
      max_queue_wait_s: Longest wait of a request that can no longer be attained,
        seconds; None takes the server's.

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
    weight: float = 1.0
    admission: AdmissionRule = "queue"
    max_queue_wait_s: float | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise ValueError(f"a service class needs a name to print: {self.name!r}")
        where = f"class {self.name!r}"
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"{where}: share={self.share} is not in 0..1")
        for name in (*_BOUNDS, "max_queue_wait_s", "weight"):
            check_bound(f"{where}: {name}", getattr(self, name))
        if self.admission not in (known := get_args(AdmissionRule)):
            raise ValueError(f"{where}: admission={self.admission!r} is not in {known}")
        is_bound = self.name == "custom" or any(getattr(self, one) for one in _BOUNDS)
        if self.admission != "queue" and not is_bound:
            where += f": admission={self.admission!r}"
            raise ValueError(f"{where} needs a bound: one of {', '.join(_BOUNDS)}")
        for one, other in (("ttft_s", "ttft_slowdown"), ("tbt_s", "tbt_step_multiple")):
            if getattr(self, one) and getattr(self, other):
                raise ValueError(f"{where}: give {one} or {other}, not both")
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
        """Returns the absolute objective, on an idle server of these times.

        Raises:
          ValueError: If a relative bound lacks its measurement.
        """
        ttft_s, tbt_s = self.ttft_s, self.tbt_s
        if self.ttft_slowdown is not None:
            ttft_s = self._times("ttft_slowdown", isolated_ttft_s)
        if self.tbt_step_multiple is not None:
            tbt_s = self._times("tbt_step_multiple", step_s)
        return Slo(ttft_s=ttft_s, tbt_s=tbt_s, ttlt_s=self.ttlt_s)

    def _times(self, bound: str, time_s: float | None) -> float:
        factor: float = getattr(self, bound)
        if time_s is None:
            raise ValueError(
                f"class {self.name!r}: {bound}={factor:g} needs a measured time; give "
                "seconds here"
            )
        return factor * time_s


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
        is_bound = field in (*_BOUNDS, "max_queue_wait_s")
        if field in ("name", "admission") or (value is None and is_bound):
            continue
        is_guard = field == "guard"
        if isinstance(value, bool) != is_guard or not isinstance(value, int | float):
            words = "true or false" if is_guard else "a number"
            where = f"class {row['name']!r}: {field}={value!r}"
            raise ValueError(f"{where} is not {words}")
    return ServiceClass(**row)
