"""StepRecord: one step's numbers, made where it runs and read everywhere else."""

import dataclasses
from typing import Any

import numpy as np

from jserve_sched.steps import features


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One step: sizes and times only, never text.

    A field that is not known is 0, or empty: a simulation packs and launches nothing,
    and an older step log has fewer fields. Times of day are on the engine loop's
    clock, or virtual in a simulation.

    Attributes:
      step_id: Number of the step, from 0.
      end_s: Time at which it ended, seconds.
      launched_s: Time at which it was handed to the device, seconds.
      num_rows: Decode rows compiled, B.
      num_blocks: Prefill blocks compiled, NB.
      used_rows: Decode rows that held a request.
      used_blocks: Prefill blocks that held a real token.
      prefill_tokens: Prompt tokens computed.
      decode_pages: KV pages of the longest decode row.
      block_pages: KV pages of the longest prefill block.
      num_waiting: Requests that waited for a slot when it was planned.
      num_compiling: Programs that were being compiled or loaded when it was launched.
      ended_by: Why no further block was planned, a value of `PlanEnd`.
      leaves_work: Whether a prompt, or part of one, was left out for want of room.
      predicted_s: Duration that the plan predicted, seconds.
      bucket_s: Price of the bucket when the step had ended, seconds: by the step-time
        table, or by a simulation's cost model.
      used_s: Price of the same step without padding, seconds.
      duration_s: Duration, seconds: from its launch, or from the end of the step before
        if that is later, to its end as the host saw it.
      plan_s: Host time for planning and dispatch, seconds.
      transfer_s: Host time for packing the step's argument, seconds.
      launch_s: Host time for handing the program to the device, seconds, or for running
        it where the backend does so at once.
      wait_s: Host time waiting for the device, seconds.
      apply_s: Host time for applying the result and notifying the listener, seconds.
      host_s: All host time for the step except `wait_s`, seconds: the four parts and
        the bookkeeping between them.
    """

    step_id: int = 0
    end_s: float
    launched_s: float = 0.0
    num_rows: int
    num_blocks: int
    used_rows: int
    used_blocks: int
    prefill_tokens: int = 0
    decode_pages: int
    block_pages: int
    num_waiting: int = 0
    num_compiling: int = 0
    ended_by: str = ""
    leaves_work: bool
    predicted_s: float = 0.0
    bucket_s: float = 0.0
    used_s: float = 0.0
    duration_s: float
    plan_s: float = 0.0
    transfer_s: float = 0.0
    launch_s: float = 0.0
    wait_s: float = 0.0
    apply_s: float = 0.0
    host_s: float = 0.0

    @property
    def start_s(self) -> float:
        """Time at which the device turned to it, seconds."""
        return self.end_s - self.duration_s

    @property
    def used_tokens(self) -> int:
        """Real tokens computed, of decodes and prompts."""
        return self.used_rows + self.prefill_tokens


FIELDS = tuple(field.name for field in dataclasses.fields(StepRecord))
_SIZES = {  # fields that are a feature, and which
    "num_rows": features.NUM_ROWS,
    "num_blocks": features.NUM_BLOCKS,
    "used_rows": features.NUM_DECODES,
    "prefill_tokens": features.PREFILL_TOKENS,
    "decode_pages": features.DECODE_PAGES,
    "block_pages": features.BLOCK_PAGES,
}


def recorded_sizes(matrix: np.ndarray) -> list[dict[str, Any]]:
    """Returns the fields of records that are features, of steps `[N, F]`."""
    rows = matrix[:, list(_SIZES.values())].astype(np.int64).tolist()
    return [dict(zip(_SIZES, row, strict=True)) for row in rows]
