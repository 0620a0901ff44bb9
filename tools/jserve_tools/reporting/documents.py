"""The report as one JSON document, and atomic writing of files.

A file is written beside its place and renamed into it, so an interrupted program leaves
either the old file or the new one.
"""

import dataclasses
import datetime
import enum
import json
import math
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jserve
from jserve_sched.outcomes import SCHEMA_VERSION, Outcome, token_gaps_s

_PLACES = 6  # microseconds
# The facts of a server that are part of a report.
_SERVER_FACTS = (
    *("url", "model", "served_model_name", "max_model_len", "num_kv_tokens"),
    *("vocab_size", "engine", "versions"),
)


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Returns a value in the types of JSON, with times rounded to a microsecond.

    Raises:
      ValueError: If a number is not finite, which JSON cannot hold.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} cannot be written to a report: it is not finite")
    return round(number, _PLACES) if abs(number) >= 1e-3 else float(f"{number:.4g}")


def outcome_rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Returns the report's row for each request; times count from the first arrival."""
    first_s = min(outcome.arrival_s for outcome in outcomes)
    rows = []
    for outcome in outcomes:
        gaps_s = token_gaps_s([outcome])
        row = {
            "arrival_s": outcome.arrival_s - first_s,
            "service_class": outcome.service_class,
            "prompt_tokens": outcome.num_prompt_tokens,
            "output_tokens": len(outcome.token_times_s),
            "slo": known(dataclasses.asdict(outcome.slo)),
            "ttft_s": outcome.ttft_s,
            "tbt_p99_s": float(np.percentile(gaps_s, 99)) if gaps_s else None,
            "e2e_s": outcome.e2e_s,
            "violation": outcome.violation,
            "message": outcome.message or None,
        }
        rows.append(known(row))
    return rows


def known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def commit() -> str | None:
    """Returns this code's commit, with a plus if files changed; None if unknown."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always"]
    try:
        done = subprocess.run(
            [*git, "--exclude=*", "--abbrev=12", "--dirty=+"],
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def device_name(facts: Mapping[str, Any]) -> str | None:
    """Returns the server's device, as "platform kind"; None if unknown."""
    device = facts.get("device")
    if not isinstance(device, Mapping):
        return device
    words = dict.fromkeys(device[key] for key in ("platform", "kind") if key in device)
    if device.get("count", 1) != 1:
        words[f"x{device['count']}"] = None
    return " ".join(map(str, words))


def document(
    *,
    command: Sequence[str],
    facts: Mapping[str, Any],
    workload: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the whole report, ready for `json.dumps`.

    Args:
      facts: What the server states at /jserve/info: device, versions and so on.
      extra: Further keys, such as yardstick and capacity; None values are left out.
    """
    versions = facts.get("versions") or {}
    head: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": jserve.__version__,
        "commit": commit(),
        "device": device_name(facts),
        "jax": facts.get("jax") or versions.get("jax"),
        "machine": {"processor": platform.machine(), "num_cpus": os.cpu_count()},
        "command": list(command),
        "server": {name: facts[name] for name in _SERVER_FACTS if name in facts},
        "workload": workload,
        **extra,
        "runs": list(runs),
    }
    return {name: plain(value) for name, value in known(head).items()}


def write_report(folder: pathlib.Path, report: Mapping[str, Any]) -> pathlib.Path:
    """Writes report.json into a folder; returns its path."""
    path = folder / "report.json"
    write_whole(path, (json.dumps(plain(report), indent=1) + "\n").encode())
    return path


def one_line(report: Mapping[str, Any]) -> str:
    """Returns the report without per-request rows, as one line of JSON."""
    short = dict(report)
    short["runs"] = [
        {name: value for name, value in run.items() if name != "requests"}
        for run in report["runs"]
    ]
    return json.dumps(short, separators=(",", ":"))
