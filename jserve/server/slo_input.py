"""The SLO of a request: from its body, its headers, its tier, or the default class.

The first source that gives an SLO decides alone. Sources are never mixed, so that it is
clear where each bound comes from.
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from jserve.config import ServerConfig, read_setting
from jserve.server.errors import ApiError, quote
from jserve_sched.requests.service_class import (
    BEST_EFFORT,
    ServiceClass,
    parse_service_classes,
)
from jserve_sched.requests.slo import Slo

MAX_BOUND_S = 86400.0
UNREAD_CLASS = "unread"  # in metrics, of requests refused before their body was read
_CUSTOM = ServiceClass(name="custom")  # in reports, of requests that bring an SLO
_DEFAULT_TIERS = ("auto", "default")
# Header, by field of SloFields.
_HEADERS = {"ttft_ms": "x-slo-ttft-ms", "tpot_ms": "x-slo-tpot-ms"}

_Seconds = Annotated[float, Meta(gt=0, le=MAX_BOUND_S)]
_Milliseconds = Annotated[float, Meta(gt=0, le=MAX_BOUND_S * 1000)]


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
          ApiError: 400, naming `param`, if two fields give the same bound, or a bound
            lacks another that it requires.
        """
        bounds: dict[str, float] = {}
        for name in self.__struct_fields__:
            if (value := getattr(self, name)) is None:
                continue
            kind, unit = name.replace("tpot", "tbt").split("_")
            if f"{kind}_s" in bounds:
                raise ApiError(f"slo gives {kind}_s twice, last as {name}", param)
            bounds[f"{kind}_s"] = value * 1e-3 if unit == "ms" else value
        try:
            return Slo(**bounds)
        except ValueError as error:
            raise ApiError(f"{param}: {error}", param) from None


def _slo_from_headers(headers: Mapping[str, str]) -> Slo:
    fields = SloFields()
    for field, name in _HEADERS.items():
        if (text := headers.get(name)) is not None:
            try:
                setattr(
                    fields, field, msgspec.convert(text, _Milliseconds, strict=False)
                )
            except msgspec.ValidationError:
                most = MAX_BOUND_S * 1000
                message = f"{name}={quote(text)} is not above 0 and at most {most:g}"
                raise ApiError(message, name) from None
    return fields.to_slo(" and ".join(_HEADERS.values()))


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
        field: str = "service_tier",
    ) -> tuple[Slo, ServiceClass]:
        """Returns the SLO of a request, and the class under which it is reported.

        `slo` and `service_tier`, by whatever name `field`, are fields of the body;
        headers have names in lower case.

        Raises:
          ApiError: 400 for an unknown class, or a value out of range.
        """
        tier = None if service_tier is None else self._tier(service_tier, field)
        if slo is not None:
            return slo.to_slo(), tier or self._custom
        if any(name in headers for name in _HEADERS.values()):
            return _slo_from_headers(headers), tier or self._custom
        tier = tier or self._default
        return self._slos[tier.name], tier

    def _tier(self, name: str, field: str) -> ServiceClass:
        if name in _DEFAULT_TIERS:
            return self._by_name.get(name, self._default)
        if name not in self._by_name:
            known = ", ".join([*self._by_name, *_DEFAULT_TIERS])
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
