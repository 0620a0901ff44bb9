"""Measures systems in turn, A B A B, and compares them repeat by repeat.

The one idea: a ratio is taken within one repeat, whose measurements are seconds
apart, so that what slows the machine down slows both; of these ratios the median
counts.
"""

import dataclasses
import json
import pathlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """One system under one load, once.

    Attributes:
      system: its name.
      load: requests at once (the batch, or the number of clients).
      repeat: counts from 0.
      num_requests: requests answered, each of full length.
      output_tokens: tokens in all answers.
      elapsed_s: from the first request to the last answer.
      other_cores: cores kept busy by processes of others meanwhile.
      num_disturbed: earlier attempts thrown away, since others were too busy.
      details: what else was seen.
    """

    system: str
    load: int
    repeat: int
    num_requests: int
    output_tokens: int
    elapsed_s: float
    other_cores: float
    num_disturbed: int
    details: dict[str, Any]

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second."""
        return self.output_tokens / self.elapsed_s

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {**dataclasses.asdict(self), "tokens_per_s": self.tokens_per_s}


def measure_in_quiet(
    measure: Callable[[], Measurement],
    *,
    sessions: Collection[int],
    max_other_cores: float,
    quiet_timeout_s: float,
    max_attempts: int,
) -> Measurement:
    """Measures again while others disturb; returns the least disturbed attempt.

    Args:
      measure: measures once.
      sessions: session ids of the processes that are ours.
      max_other_cores: others that use more than this many cores disturb.
      quiet_timeout_s: how long to wait for quiet before each attempt.
      max_attempts: after so many, the best of them counts.
    """
    attempts: list[Measurement] = []
    while len(attempts) < max_attempts:
        machine.wait_until_quiet(max_other_cores, quiet_timeout_s, sessions)
        attempts.append(measure())
        if attempts[-1].other_cores <= max_other_cores:
            break
    best = min(attempts, key=lambda one: one.other_cores)
    return dataclasses.replace(best, num_disturbed=len(attempts) - 1)


def turns(
    systems: Sequence[str], loads: Sequence[int], num_repeats: int
) -> Iterator[tuple[int, int, str]]:
    """Yields (load, repeat, system) in the order to measure: the systems alternate."""
    for load in loads:
        for repeat in range(num_repeats):
            for system in systems:
                yield load, repeat, system


def summarise(measurements: Sequence[Measurement], ours: str) -> list[dict[str, Any]]:
    """Returns, for each load, each system's median and our ratio to each peer."""
    speeds: dict[int, dict[str, dict[int, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for one in measurements:
        speeds[one.load][one.system][one.repeat] = one.tokens_per_s
    rows = []
    for load, by_system in speeds.items():
        own = by_system.get(ours, {})
        ratios = {
            system: sorted(own[i] / speed for i, speed in some.items() if i in own)
            for system, some in by_system.items()
            if system != ours
        }
        rows.append(
            {
                "load": load,
                "median_tokens_per_s": {
                    system: statistics.median(by_repeat.values())
                    for system, by_repeat in by_system.items()
                },
                "ratio": {
                    system: {
                        "median": statistics.median(some),
                        "min": some[0],
                        "max": some[-1],
                    }
                    for system, some in ratios.items()
                    if some
                },
            }
        )
    return rows


def print_table(rows: Sequence[dict[str, Any]], load_name: str, ours: str) -> None:
    """Prints medians, and for each peer our median ratio with its range."""
    for row in rows:
        print(f"\n{load_name} {row['load']}")
        for system, speed in row["median_tokens_per_s"].items():
            line = f"  {system:<24} {speed:9.1f} tokens/s"
            if system in row["ratio"]:
                ratio = row["ratio"][system]
                line += (
                    f"   {ours} is {ratio['median']:.2f}x"
                    f" ({ratio['min']:.2f} to {ratio['max']:.2f})"
                )
            print(line)


def write_json(path: pathlib.Path, document: dict[str, Any]) -> None:
    """Writes a document whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
