"""StepRecord: one step's numbers, made where it runs and read everywhere else."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jserve_sched.buckets.table import DEFAULT_BLOCK_TOKENS, Bucket
from jserve_sched.steps import features


class StepRecord(NamedTuple):
    """One step: sizes and times only, never text.

    Fields that are not known are 0, or empty: a simulation packs and launches nothing,
    and an older step log has fewer fields. Times of day are on the engine loop's clock,
    or virtual in a simulation. It is a tuple because simulations make many; give and
    read its fields by name.

    Attributes:
      end_s: Time at which it ended, seconds.
      duration_s: Duration, seconds: from its launch, or from the end of the step before
        if that is later, to its end as the host saw it.
      num_rows: Decode rows compiled, B.
      num_blocks: Prefill blocks compiled, NB.
      used_rows: Decode rows that held a request.
      used_blocks: Prefill blocks that held a real token.
      decode_pages: KV pages that the decode rows read together.
      block_pages: KV pages that the prefill blocks read together, each up to its last
        token.
      leaves_work: Whether a prompt, or part of one, was left out for want of room.
      step_id: Number of the step, from 0.
      launched_s: Time at which it was handed to the device, seconds.
      prefill_tokens: Prompt tokens computed.
      num_waiting: Requests that waited for a slot when it was planned.
      num_compiling: Programs that were being compiled or loaded when it was launched.
      ended_by: Reason for which no further block was planned, a value of `PlanEnd`.
      predicted_s: Duration that the plan predicted, seconds.
      bucket_s: Price of the bucket, seconds: by the step-time table as it was timed at
        start-up, or by a simulation's cost model.
      used_s: Price of the same step without padding, seconds.
      plan_s: Host time for planning and dispatch, seconds.
      transfer_s: Host time for packing the step's argument, seconds.
      launch_s: Host time for handing the program to the device, seconds, or for running
        it where the backend does so at once.
      wait_s: Host time waiting for the device, seconds.
      apply_s: Host time for applying the result and notifying the listener, seconds.
      host_s: All host time for the step except `wait_s`, seconds: the four parts and
        the bookkeeping between them.
    """

    end_s: float
    duration_s: float
    num_rows: int
    num_blocks: int
    used_rows: int
    used_blocks: int
    decode_pages: int
    block_pages: int
    leaves_work: bool
    step_id: int = 0
    launched_s: float = 0.0
    prefill_tokens: int = 0
    num_waiting: int = 0
    num_compiling: int = 0
    ended_by: str = ""
    predicted_s: float = 0.0
    bucket_s: float = 0.0
    used_s: float = 0.0
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

    def bucket(self, block_tokens: int = DEFAULT_BLOCK_TOKENS) -> Bucket:
        """Returns the bucket it ran in, of blocks of `block_tokens` tokens."""
        return Bucket(self.num_rows, self.num_blocks, block_tokens)


_SIZES = {  # fields that are a feature, and which
    "num_rows": features.NUM_ROWS,
    "num_blocks": features.NUM_BLOCKS,
    "used_rows": features.NUM_DECODES,
    "prefill_tokens": features.PREFILL_TOKENS,
    "decode_pages": features.DECODE_PAGES,
    "block_pages": features.BLOCK_PAGES,
}


def recorded_sizes(matrix: np.ndarray) -> dict[str, Any]:
    """Returns the fields of a record that are features.

    Each is one number for features `[F]`, and a list for those of several steps,
    `[N, F]`.
    """
    columns = matrix[..., list(_SIZES.values())].astype(np.int64).T.tolist()
    return dict(zip(_SIZES, columns, strict=True))


def recorded_features(steps: Sequence[StepRecord]) -> np.ndarray:
    """Returns the features `[N, F]` of records; those that records lack are 0."""
    matrix = np.zeros((len(steps), features.NUM_FEATURES))
    for name, column in _SIZES.items():
        matrix[:, column] = [getattr(one, name) for one in steps]
    return matrix
