"""Refuses flags that would do nothing, so that nobody is misled by a result.

The one idea: a flag that a mode does not read is a mistake about what is measured,
and is said before anything is started.
"""

import dataclasses
from collections.abc import Collection, Iterable

from jserve.config import EngineConfig

_RATE_FLAGS = ("load", "qps", "rate_scale")
_REPLAY_FLAGS = (
    *("trace", "length_scale", *_RATE_FLAGS),
    *("service_classes", "capacity_s", "capacity_slots", "one_shot"),
    *("ignore_eos", "declared_max_tokens", "temperature"),
)
_CLOSED_FLAGS = ("clients", "prompt_tokens", "output_tokens")
_CAPACITY_FLAGS = ("capacity_s", "capacity_slots")
_HTTP_FLAGS = ("api", "extra_body", "api_key_file")
_OWN_SERVER_FLAGS = (
    *("launch", "policies", "bucket_strategies", "measure_warm_start"),
    *(field.name for field in dataclasses.fields(EngineConfig)),
)


def check_flags(
    given: Collection[str],
    *,
    mode: str,
    url: str,
    is_launched: bool,
    ignores_eos: bool = True,
) -> None:
    """Checks that every flag given on the command line is used.

    Args:
      given: names of those flags.
      mode: "replay" or "closed".
      url: of a running server; "" if there is none.
      is_launched: whether servers are started as processes.
      ignores_eos: whether every answer has as many tokens as it asked for.

    Raises:
      ValueError: naming the flags and why they would do nothing.
    """

    def refuse(idle: Iterable[str], why: str) -> None:
        # A set's names, but `seed`, which is both the engine's and the workload's.
        found = [f"--{name}" for name in idle if name in given and name != "seed"]
        if found:
            raise ValueError(f"{why}: leave out {', '.join(found)}")

    if url:
        refuse(
            _OWN_SERVER_FLAGS, f"url={url} is a running server with its own settings"
        )
    elif not is_launched:
        refuse(_HTTP_FLAGS, "engines in this process take no HTTP requests")
    if ignores_eos:
        refuse(
            ("length_estimator",), "without noignore_eos there is no length to guess"
        )
    if mode == "closed":
        refuse(_REPLAY_FLAGS, "mode=closed replays no trace")
        return
    refuse(_CLOSED_FLAGS, "mode=replay has the lengths and times of a trace")
    if "one_shot" in given:
        refuse((*_RATE_FLAGS, *_CAPACITY_FLAGS), "one_shot has no rate")
    if "qps" in given or "rate_scale" in given:
        refuse(_CAPACITY_FLAGS, "a rate in requests needs no capacity")
