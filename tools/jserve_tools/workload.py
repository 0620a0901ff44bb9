"""Turns trace rows into requests: token ids, a service class, a promise.

The one idea: everything that chance decides is a function of (seed, row), or of
(seed, run, row) for the prompt. So every policy meets the same lengths, classes
and promises, but no run finds the prompts of another in a cache.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import numpy as np

from jserve_sched.slo import ServiceClass, Slo
from jserve_sched.workload import Yardstick
from jserve_tools.workload_trace import TraceRow, row_classes

# Ids that every vocabulary has, and that the usual layouts do not give to special
# tokens: bytes in the byte tokenizer of the named models and in GPT-2's layout,
# byte-fallback tokens in Llama 2's. As a text they mean nothing, nor need they: a
# step takes as long whatever the ids. A vocabulary that keeps other special tokens
# there needs other bounds.
FIRST_TOKEN_ID = 4
LAST_TOKEN_ID = 255

# Chosen so that at nine tenths of capacity neither is met by all or by none: the
# tight one has room for one long prompt in front of it, the lax one for a queue.
DEFAULT_SERVICE_CLASSES = (
    ServiceClass(
        name="interactive", share=0.6, ttft_slowdown=15.0, tbt_step_multiple=25.0
    ),
    ServiceClass(name="batch", share=0.4, ttft_slowdown=200.0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """How the requests of a trace say that they want to be answered.

    Attributes:
      ignore_eos: whether an answer goes on to its last token whatever the model draws;
        if not, it may end before.
      declared_max_tokens: most tokens that each asks for; 0 for what the trace says.
      temperature: of sampling; 0 takes the likeliest token.
    """

    ignore_eos: bool = True
    declared_max_tokens: int = 0
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.declared_max_tokens and self.ignore_eos:
            raise ValueError(
                f"declared_max_tokens={self.declared_max_tokens} would do nothing "
                "without noignore_eos: each answer has the tokens of the trace"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkloadRequest:
    """One request, ready to send.

    Attributes:
      request_id: unique within this program's life.
      arrival_s: when to send it, seconds after the replay starts.
      prompt: `[n]` int32 token ids.
      max_tokens: most output tokens to draw.
      service_class: name of its class.
      slo: its absolute objective.
      ignore_eos: whether it draws all of them.
      temperature: of sampling.
      seed: of sampling.
    """

    request_id: str
    arrival_s: float
    prompt: np.ndarray
    max_tokens: int
    service_class: str = "best_effort"
    slo: Slo = dataclasses.field(default_factory=Slo)
    ignore_eos: bool = True
    temperature: float = 0.0
    seed: int = 0


def draw_prompt(
    length: int,
    *,
    seed: int,
    run: int,
    row: int,
    first_id: int = FIRST_TOKEN_ID,
    last_id: int = LAST_TOKEN_ID,
) -> np.ndarray:
    """Returns `[length]` int32 ids, uniform from `first_id` to `last_id`."""
    random = np.random.default_rng((seed, run, row))
    return random.integers(first_id, last_id + 1, length, np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Trace rows and all that is needed to make requests of them.

    Attributes:
      rows: the requests' lengths and arrivals.
      seed: decides classes and prompts.
      classes: the service classes. Rows that name none get one by shares, which then
        add up to 1.
      first_id: least token id of a prompt.
      last_id: greatest token id of a prompt.
      answers: what the rows ask for; requests that measure the machine do not.
    """

    rows: Sequence[TraceRow]
    seed: int = 0
    classes: Sequence[ServiceClass] = DEFAULT_SERVICE_CLASSES
    first_id: int = FIRST_TOKEN_ID
    last_id: int = LAST_TOKEN_ID
    answers: Answers = Answers()

    def __post_init__(self) -> None:
        _ = self._row_classes  # a wrong one is refused now
        if not 0 <= self.first_id < self.last_id:
            raise ValueError(
                f"first_prompt_token={self.first_id} is not in "
                f"0..last_prompt_token={self.last_id}"
            )

    @functools.cached_property
    def _row_classes(self) -> list[ServiceClass]:
        return row_classes(self.rows, self.classes, self.seed)

    def slo(self, row: int, yardstick: Yardstick | None) -> tuple[str, Slo]:
        """Returns the class name and the absolute objective of a row."""
        one = self._row_classes[row]
        if yardstick is None:
            return one.name, one.resolve()
        isolated_s = yardstick.isolated_ttft_s(self.rows[row].prompt_tokens)
        return one.name, one.resolve(
            isolated_ttft_s=isolated_s, step_s=yardstick.step_s
        )

    def request(
        self,
        run: int,
        index: int,
        *,
        prompt_tokens: int,
        max_tokens: int,
        arrival_s: float = 0.0,
    ) -> WorkloadRequest:
        """Returns a best-effort request of any length; for measuring the machine."""
        return WorkloadRequest(
            request_id=f"bench-{run}-{index}",
            arrival_s=arrival_s,
            prompt=draw_prompt(
                prompt_tokens,
                seed=self.seed,
                run=run,
                row=index,
                first_id=self.first_id,
                last_id=self.last_id,
            ),
            max_tokens=max_tokens,
        )

    def requests(self, run: int, yardstick: Yardstick | None) -> list[WorkloadRequest]:
        """Returns every row as a request of run number `run`."""
        answers = self.answers
        requests = []
        for index, row in enumerate(self.rows):
            name, slo = self.slo(index, yardstick)
            request = self.request(
                run,
                index,
                prompt_tokens=row.prompt_tokens,
                max_tokens=answers.declared_max_tokens or row.output_tokens,
                arrival_s=row.arrival_s,
            )
            requests.append(
                dataclasses.replace(
                    request,
                    service_class=name,
                    slo=slo,
                    ignore_eos=answers.ignore_eos,
                    temperature=answers.temperature,
                    seed=zlib.crc32(f"{self.seed}:{index}".encode()),
                )
            )
        return requests
