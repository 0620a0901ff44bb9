"""What a request was promised: from its body, its headers, its tier, or by default.

The one idea: the first source that says anything decides alone; sources are
never mixed, so that nobody has to guess which bound came from where.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from jserve.config import ServerConfig
from jserve.server.errors import ApiError, quote
from jserve_sched.slo import BEST_EFFORT, ServiceClass, Slo, parse_service_classes

MAX_BOUND_S = 86400.0
CUSTOM_CLASS = "custom"  # in reports: an objective that no class names
UNREAD_CLASS = "unread"  # in metrics: a request that was refused before it was read
_DEFAULT_TIERS = ("auto", "default")
# Name in the body: field of Slo, seconds in one unit.
_BODY_KEYS = {
    "ttft_s": ("ttft_s", 1.0),
    "ttft_ms": ("ttft_s", 1e-3),
    "tbt_s": ("tbt_s", 1.0),
    "tbt_ms": ("tbt_s", 1e-3),
    "tpot_s": ("tbt_s", 1.0),
    "tpot_ms": ("tbt_s", 1e-3),
    "ttlt_s": ("ttlt_s", 1.0),
    "ttlt_ms": ("ttlt_s", 1e-3),
}
_HEADERS = {"x-slo-ttft-ms": "ttft_s", "x-slo-tpot-ms": "tbt_s"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Promise:
    """An objective and the name it is reported under."""

    slo: Slo
    service_class: str
    guard: bool = False


class ServiceClasses:
    """The classes a server knows, and the one for requests that name none."""

    def __init__(self, classes: tuple[ServiceClass, ...], default: str):
        """Makes them ready.

        Raises:
          ValueError: if a class is relative to the machine, or the default is
            not among them.
        """
        for one in classes:
            if one.is_relative:
                field = (
                    "ttft_slowdown"
                    if one.ttft_slowdown is not None
                    else "tbt_step_multiple"
                )
                raise ValueError(
                    f"service class {one.name!r} has {field}="
                    f"{getattr(one, field)}, which is relative to the machine: a "
                    "server needs absolute bounds (ttft_s, tbt_s, ttlt_s)"
                )
        named = {one.name: one for one in (BEST_EFFORT, *classes)}
        if default not in named:
            raise ValueError(
                f"default_service_class={default!r} is not one of {sorted(named)}"
            )
        self.classes = tuple(named.values())
        self._promises = {
            one.name: Promise(
                slo=one.resolve(), service_class=one.name, guard=one.guard
            )
            for one in self.classes
        }
        self._default = self._promises[default]

    def promise(
        self,
        *,
        slo: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        service_tier: str | None,
    ) -> Promise:
        """Returns what a request is promised.

        Args:
          slo: the body's object.
          headers: of the request, names in lower case.
          service_tier: the body's class name.

        Raises:
          ApiError: 400 for an unknown key or class, or a value out of range.
        """
        tier = self._tier(service_tier)
        label = CUSTOM_CLASS if tier is None else tier.service_class
        guard = tier is not None and tier.guard
        if slo is not None:
            own = _slo_from_body(slo)
        elif any(name in headers for name in _HEADERS):
            own = _slo_from_headers(headers)
        else:
            return tier or self._default
        return Promise(slo=own, service_class=label, guard=guard)

    def _tier(self, name: str | None) -> Promise | None:
        if name is None:
            return None
        if name in self._promises:
            return self._promises[name]
        if name in _DEFAULT_TIERS:
            return self._default
        known = ", ".join([*self._promises, *_DEFAULT_TIERS])
        raise ApiError(
            400,
            f"service_tier={quote(name)} is not a class of this server; it knows "
            f"{known}",
            param="service_tier",
        )


def _bound_s(name: str, value: Any, unit_s: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 < value <= MAX_BOUND_S / unit_s:
        return float(value) * unit_s
    limit = MAX_BOUND_S / unit_s
    raise ApiError(
        400,
        f"{name}={quote(value)} must be a number above 0 and at most {limit:.0f}",
        param=name,
    )


def _slo(bounds: Mapping[str, float], param: str) -> Slo:
    try:
        return Slo(**bounds)
    except ValueError as error:
        raise ApiError(400, f"{param}: {error}", param=param) from None


def _slo_from_body(row: Mapping[str, Any]) -> Slo:
    bounds: dict[str, float] = {}
    for key, value in row.items():
        if key not in _BODY_KEYS:
            raise ApiError(
                400,
                f"slo has the unknown key {quote(key)}; known: {', '.join(_BODY_KEYS)}",
                param="slo",
            )
        if value is None:
            continue
        field, unit_s = _BODY_KEYS[key]
        if field in bounds:
            raise ApiError(400, f"slo gives {field} twice, last as {key}", param="slo")
        bounds[field] = _bound_s(f"slo.{key}", value, unit_s)
    return _slo(bounds, "slo")


def _slo_from_headers(headers: Mapping[str, str]) -> Slo:
    bounds: dict[str, float] = {}
    for name, field in _HEADERS.items():
        text = headers.get(name)
        if text is None:
            continue
        value: Any = text
        with contextlib.suppress(ValueError):  # _bound_s names what is no number
            value = float(text)
        bounds[field] = _bound_s(name, value, 1e-3)
    return _slo(bounds, " and ".join(_HEADERS))


def load_service_classes(config: ServerConfig) -> ServiceClasses:
    """Reads the classes that a configuration names.

    Raises:
      ValueError: if the file is missing or broken, or a class cannot be served.
    """
    classes: tuple[ServiceClass, ...] = ()
    if config.service_classes is not None:
        try:
            text = config.service_classes.read_text(encoding="utf-8")
            classes = parse_service_classes(text)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"service_classes: {error}") from None
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"service_classes={config.service_classes}: {error}"
            ) from None
    return ServiceClasses(classes, config.default_service_class)
