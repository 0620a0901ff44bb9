"""StepPlan: what the scheduler hands to the engine for one step."""

import dataclasses
import enum
from typing import NamedTuple

import numpy as np

from jserve_sched.buckets.table import Bucket
from jserve_sched.requests.request import Request


class PlanEnd(enum.Enum):
    """Why the last padded block of a plan's bucket was left empty, if one was."""

    FULL = "full"  # no padded block is left
    NO_WORK = "no_work"  # no admissible request has a token left to compute
    ROWS = "rows"  # all slots are taken, so nothing more may be admitted
    PAGES = "pages"  # the KV pool cannot hold one block more
    TOKEN_LIMIT = "token_limit"  # the step's token limit
    TIME_LIMIT = "time_limit"  # the policy gives the step no more time


class Row(NamedTuple):
    """Positions `start` to `start + num_tokens` of one request, computed by a step.

    It draws the next token when it computes the last projected position.
    """

    request: Request
    start: int
    num_tokens: int
    draws_token: bool

    @property
    def stop(self) -> int:
        """One past the last position computed; also the context length after it."""
        return self.start + self.num_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One step.

    Attributes:
      decodes: Rows of one token each, at most `bucket.num_rows`.
      chunks: Prefill rows; a chunk of c tokens takes ceil(c / Q) blocks, in
        order, at most `bucket.num_blocks` in all.
      preempted: Running requests whose pages are taken back first.
      features: `[F]`, numbers that its duration depends on; see `features`.
      ended_by: Reason for which no further block was added.
      leaves_work: Whether a prompt, or part of one, was left out for want of room.
    """

    step_id: int
    bucket: Bucket
    decodes: tuple[Row, ...]
    chunks: tuple[Row, ...]
    preempted: tuple[Request, ...]
    predicted_s: float
    features: np.ndarray = dataclasses.field(compare=False)
    ended_by: PlanEnd
    leaves_work: bool = False

    @property
    def num_tokens(self) -> int:
        """Real tokens computed."""
        return len(self.decodes) + sum(row.num_tokens for row in self.chunks)

    @property
    def drawing_rows(self) -> list[Row]:
        """Rows that draw a token, in the order of the tokens."""
        return [*self.decodes, *(row for row in self.chunks if row.draws_token)]

    @property
    def num_sampled(self) -> int:
        """Rows that draw a token."""
        return len(self.decodes) + sum(row.draws_token for row in self.chunks)

    @property
    def num_blocks(self) -> int:
        """Blocks that hold at least one real token."""
        size = self.bucket.block_tokens
        return sum(-(-row.num_tokens // size) for row in self.chunks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """The tokens drawn, in plan order with decodes first, and the time it took.

    Without `end_s`, clock seconds, no forecast is compared with what happened.
    """

    tokens: tuple[int, ...]
    duration_s: float
    end_s: float | None = None
