"""The SLO of a request: from its body, its headers, its tier, or the default class.

The first source that gives an SLO decides alone. Sources are never mixed, so that it is
clear where each bound comes from.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from jserve.program import read_setting
from jserve.server.errors import ApiError, quote
from jserve.server_config import ServerConfig
from jserve_sched.requests.request import Request
from jserve_sched.requests.service_class import (
    BEST_EFFORT,
    ServiceClass,
    parse_service_classes,
)
from jserve_sched.requests.slo import Slo

MAX_BOUND_S = 86400.0
MAX_PRIORITY = 2**31 - 1
_PRIORITY = "x-vllm-priority"
UNREAD_CLASS = "unread"  # in metrics, of requests refused before their body was read
_CUSTOM = ServiceClass(name="custom")  # in reports, of requests that bring an SLO
# OpenAI's tiers, which are the default class unless a class has their name.
_DEFAULT_TIERS = ("auto", "default", "standard", "priority")
_FLEX = "flex"  # another one, which is best effort
_PREFIX = "x-slo-"
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}  # of a second
# Bound and unit of each header: ours, those of llm-d, and one of SGLang's router.
SLO_HEADERS = {
    f"{prefix}-{name}-{unit}": (bound, unit)
    for prefix in ("x-slo", "x-llm-d-slo")
    for name, bound in (
        *(("ttft", "ttft_s"), ("tpot", "tbt_s")),
        *(("tbt", "tbt_s"), ("ttlt", "ttlt_s")),
    )
    for unit in _UNITS
} | {"x-sgl-ttft-slo-ms": ("ttft_s", "ms")}

_Seconds = Annotated[float, Meta(gt=0, le=MAX_BOUND_S)]
_Milliseconds = Annotated[float, Meta(gt=0, le=MAX_BOUND_S * 1000)]


def _to_slo(bounds: Mapping[str, float], param: str) -> Slo:
    """Returns the objective with `bounds`, in seconds.

    Raises:
      ApiError: 400, naming `param`, if `tbt_s` lacks a `ttft_s`, or the last token is
        due before the first.
    """
    try:
        slo = Slo(**bounds)
    except ValueError as error:
        raise ApiError(f"{param}: {error}", param) from None
    first_s, last_s = slo.ttft_s, slo.ttlt_s
    if first_s is not None and last_s is not None and last_s < first_s:
        message = f"{param}: ttlt_s={last_s:g} is below ttft_s={first_s:g}"
        raise ApiError(message, param)
    return slo


class SloFields(Struct, forbid_unknown_fields=True):
    """The object `slo` of a body; TPOT is another name of TBT."""

    ttft_s: _Seconds | None = None
    ttft_ms: _Milliseconds | None = None
    tbt_s: _Seconds | None = None
    tbt_ms: _Milliseconds | None = None
    tpot_s: _Seconds | None = None
    tpot_ms: _Milliseconds | None = None
    ttlt_s: _Seconds | None = None
    ttlt_ms: _Milliseconds | None = None

    def to_slo(self, param: str = "slo") -> Slo:
        """Returns the objective.

        Raises:
          ApiError: 400, naming `param`, if two fields give the same bound, or the
            bounds contradict each other.
        """
        bounds: dict[str, float] = {}
        for name in self.__struct_fields__:
            if (value := getattr(self, name)) is None:
                continue
            kind, unit = name.replace("tpot", "tbt").split("_")
            if f"{kind}_s" in bounds:
                raise ApiError(f"slo gives {kind}_s twice, last as {name}", param)
            bounds[f"{kind}_s"] = value / 1e3 if unit == "ms" else value
        return _to_slo(bounds, param)


class RouterTargets(Struct):
    """Targets in the words of NVIDIA Dynamo, milliseconds."""

    ttft_target: _Milliseconds | None = None
    itl_target: _Milliseconds | None = None


class Nvext(Struct):
    """The object `nvext` of a body."""

    router: RouterTargets | None = None


def _slo_from_headers(headers: Mapping[str, str]) -> Slo:
    """Returns the objective that headers give; the last name of a bound decides.

    Raises:
      ApiError: 400 for a header that is not one of them, a value that is no duration,
        or bounds that contradict.
    """
    for name in headers:
        if name.startswith(_PREFIX) and name not in SLO_HEADERS:
            known = ", ".join(one for one in SLO_HEADERS if one.startswith(_PREFIX))
            raise ApiError(f"header {quote(name)} is not one of {known}", "headers")
    bounds: dict[str, float] = {}
    for name, (bound, unit) in SLO_HEADERS.items():
        if (text := headers.get(name)) is None:
            continue
        most = MAX_BOUND_S * _UNITS[unit]
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value <= most:
            message = f"{name}={quote(text)} is not above 0 and at most {most:g}"
            raise ApiError(message, name)
        bounds[bound] = value / _UNITS[unit]
    return _to_slo(bounds, " and ".join(one for one in SLO_HEADERS if one in headers))


def read_priority(asked: int | None, headers: Mapping[str, str]) -> int:
    """Returns the tier of a request: of its body, or else of its header; 0 for none.

    Raises:
      ApiError: 400 if the header is not such an integer.
    """
    text = headers.get(_PRIORITY, "0")
    if asked is not None:
        return asked
    if not re.fullmatch(r"-?[0-9]{1,10}", text) or abs(int(text)) > MAX_PRIORITY:
        message = f"{_PRIORITY}={quote(text)} is not an integer in "
        raise ApiError(f"{message}-{MAX_PRIORITY}..{MAX_PRIORITY}", _PRIORITY)
    return int(text)


def slo_header(request: Request) -> str:
    """Returns what was understood: a dictionary of structured fields (RFC 9651)."""
    name = ascii(request.service_class)[1:-1].replace('"', "'")
    bounds = dataclasses.asdict(request.slo).items()
    texts = [f"{bound}={value:.6f}" for bound, value in bounds if value is not None]
    return ", ".join([f'class="{name}"', *texts])


class ServiceClasses:
    """The service classes of a server, with best effort, and the default class."""

    def __init__(self, classes: tuple[ServiceClass, ...], default: str):
        """Resolves each class's SLO to seconds.

        Raises:
          ValueError: If a class has a bound relative to the machine, or `default` is
            not the name of a class.
        """
        self._by_name = {one.name: one for one in (BEST_EFFORT, *classes)}
        self.classes = tuple(self._by_name.values())
        self._slos = {one.name: one.resolve() for one in self.classes}
        if default not in self._by_name:
            known = sorted(self._by_name)
            raise ValueError(f"default_service_class={default!r} is not one of {known}")
        self._default = self._by_name[default]
        self._custom = self._by_name.get(_CUSTOM.name, _CUSTOM)

    def choose(
        self,
        *,
        slo: SloFields | None,
        headers: Mapping[str, str],
        service_tier: str | None,
        nvext: Nvext | None = None,
        field: str = "service_tier",
    ) -> tuple[Slo, ServiceClass]:
        """Returns the SLO of a request, and the class under which it is reported.

        All but the headers are fields of the body, `field` the name of `service_tier`
        there; headers have names in lower case.

        Raises:
          ApiError: 400 for an unknown class, or a value out of range.
        """
        tier = None if service_tier is None else self._tier(service_tier, field)
        if slo is not None:
            return slo.to_slo(), tier or self._custom
        targets = nvext.router if nvext else None
        if targets and (targets.ttft_target or targets.itl_target):
            fields = SloFields(ttft_ms=targets.ttft_target, tbt_ms=targets.itl_target)
            return fields.to_slo("nvext.router"), tier or self._custom
        if any(one in SLO_HEADERS or one.startswith(_PREFIX) for one in headers):
            return _slo_from_headers(headers), tier or self._custom
        tier = tier or self._default
        return self._slos[tier.name], tier

    def _tier(self, name: str, field: str) -> ServiceClass:
        if name in _DEFAULT_TIERS:
            return self._by_name.get(name, self._default)
        if name == _FLEX:
            return self._by_name.get(name, BEST_EFFORT)
        if name not in self._by_name:
            known = ", ".join([*self._by_name, *_DEFAULT_TIERS, _FLEX])
            raise ApiError(f"{field}={quote(name)} is not one of {known}", field)
        return self._by_name[name]


def load_service_classes(config: ServerConfig) -> ServiceClasses:
    """Reads the service classes of a configuration.

    Raises:
      ValueError: If the file is missing or invalid, or a class cannot be served.
    """
    path = config.service_classes
    classes: tuple[ServiceClass, ...] = ()
    if path is not None:
        classes = read_setting("service_classes", path, parse_service_classes)
    return ServiceClasses(classes, config.default_service_class)
