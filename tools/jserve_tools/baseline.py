"""What the first server does on this machine, which holds for all servers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jserve_sched.workload import Yardstick
from jserve_tools.capacity import Capacity, measure_capacity
from jserve_tools.clients import Client
from jserve_tools.progress import Progress
from jserve_tools.tables import duration, slo_table
from jserve_tools.workload import Workload
from jserve_tools.yardstick import measure_yardstick

# Prompts are drawn by run number; those of runs to report begin with the third.
_YARDSTICK_RUN, _CAPACITY_RUN, FIRST_RUN = range(3)
_FOREIGN_SLOTS = 32  # where a server does not say how many requests it runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """What rates and relative objectives are multiples of.

    Attributes:
      facts: What the server states of itself.
      yardstick: Idle times, where objectives need them.
      capacity: Capacity, where rates need it.
    """

    facts: Mapping[str, Any]
    yardstick: Yardstick | None = None
    capacity: Capacity | None = None

    def describe(self, workload: Workload) -> str:
        """Returns lines for people, with the objectives in seconds."""
        lines = []
        if (idle := self.yardstick) is not None:
            points = [
                f"{duration(ttft_s)} to the first token of {length}"
                for length, ttft_s in zip(idle.prompt_tokens, idle.ttft_s, strict=True)
            ]
            step = f"{duration(idle.step_s)} a decode step"
            lines.append(f"idle server: {', '.join(points)}; {step}")
        if (full := self.capacity) is not None:
            lines.append(
                f"capacity: {full.requests_per_s:.2f} requests/s of this workload "
                f"({full.num_clients} clients for {full.window_s:.0f} s: "
                f"{full.prompt_tokens_per_s:.0f} prompt and "
                f"{full.output_tokens_per_s:.0f} output tokens/s)"
            )
        return "\n".join([*lines, slo_table(workload, self.yardstick)])


def baseline_from_json(row: Mapping[str, Any]) -> Baseline:
    """Returns the baseline whose fields JSON has kept."""
    idle, full = row["yardstick"], row["capacity"]
    return Baseline(
        facts=row["facts"],
        yardstick=None if idle is None else Yardstick(**idle),
        capacity=None if full is None else Capacity(**full),
    )


async def measure_baseline(
    client: Client, workload: Workload, progress: Progress
) -> Baseline:
    """Measures an idle server and a full one, as far as the workload needs it.

    Raises:
      RuntimeError: If it cannot be measured.
    """
    facts = await client.facts()
    replay = workload.config.replay
    yardstick = capacity = None
    if any(one.is_relative for one in workload.classes):
        with progress.doing("measuring an idle server"):
            yardstick = await measure_yardstick(client, workload, _YARDSTICK_RUN)
    if workload.config.mode == "replay" and replay.loads:
        engine = facts.get("engine") or {}
        slots = replay.capacity_slots or engine.get("max_num_seqs") or _FOREIGN_SLOTS
        with progress.doing("measuring the capacity of a full server"):
            capacity = await measure_capacity(
                client,
                workload,
                _CAPACITY_RUN,
                num_slots=int(slots),
                duration_s=replay.capacity_s,
            )
    return Baseline(facts=facts, yardstick=yardstick, capacity=capacity)
