"""What a policy is: a pure function from a snapshot to a plan."""

import dataclasses
from typing import Protocol, runtime_checkable

from jserve_sched.outlook import Outlook
from jserve_sched.plan import StepPlan
from jserve_sched.view import SchedulerView


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedChunk:
    """A policy whose steps have a fixed size.

    Attributes:
      chunk_tokens: Tokens in a step, decodes included (Sarathi's chunk size), rounded
        down to whole blocks but at least one; 0 fills the step.

    Raises:
      ValueError: If it is below 0.
    """

    chunk_tokens: int = 0

    def __post_init__(self) -> None:
        if self.chunk_tokens < 0:
            raise ValueError(f"chunk_tokens={self.chunk_tokens} is below 0")


class Policy(Protocol):
    """Decides what one step runs."""

    def plan(self, view: SchedulerView) -> StepPlan | None:
        """Returns the next step; None if nothing can run now.

        Pure: the same snapshot gives the same plan, and nothing is changed.
        """
        ...


@runtime_checkable
class LookaheadPolicy(Policy, Protocol):
    """A policy that looks further than one step, now and then.

    The scheduler asks `revise` before each `plan`, keeps what it returns and shows it
    to both in `view.outlook`. So the policy itself remembers nothing.
    """

    def revise(self, view: SchedulerView) -> Outlook | None:
        """Returns the outlook to plan by from now on; None to keep `view.outlook`.

        Pure, but for the time that a search may take: see `Outlook.search_s`.
        """
        ...
