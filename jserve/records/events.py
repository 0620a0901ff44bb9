"""What the engine's thread hands to others: tokens, states and counts."""

import dataclasses
import enum
from typing import Any, NamedTuple

from jserve.progress import Stage
from jserve_sched.buckets.table import BucketTable
from jserve_sched.policies.base import SearchTotals
from jserve_sched.requests.output_lengths import LengthErrors
from jserve_sched.requests.request import FinishReason


class Health(enum.Enum):
    """How far start-up has come; what holds in one state holds in the next.

    Between READY and WARM requests are served in few, large buckets while the finer
    ones are compiled: steps are padded more, and share the cores with a compiler.
    Measure, and let urgent traffic in, when it is WARM.
    """

    STARTING = "starting"  # alive: the process answers
    READY = "ready"  # requests are served, in the buckets compiled so far
    WARM = "warm"  # nothing is left to compile or to time
    DRAINING = "draining"  # running requests finish, new ones are refused
    FAILED = "failed"  # the engine thread has died


class QueueFullError(Exception):
    """The queue is full; `retry_after_s` says when it should have room."""

    def __init__(self, message: str, retry_after_s: float):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotServingError(Exception):
    """The engine is not taking requests: starting, draining or failed."""


class TokenLogprobs(NamedTuple):
    """Log-probabilities of the model at one output token.

    Attributes:
      drawn: That of the token.
      rank: Place of the token among all; 1 is the likeliest.
      top_tokens: The likeliest tokens, as many as were asked for.
      top: Theirs.
    """

    drawn: float
    rank: int
    top_tokens: list[int]
    top: list[float]


class TokenEvent(NamedTuple):
    """One output token, or the end of a request, or both.

    Attributes:
      token: The token id; None when the request ended without one (cancelled, or
        the engine failed).
      time_s: When the engine had it, on the engine loop's clock.
      finish_reason: Set on the last event of a request.
      num_cached_tokens: Prompt tokens that came from the prefix cache.
      error: What went wrong, on the last event of a request the engine failed.
      retry_after_s: When to come back, of a request that was refused; infinite: never.
      logprobs: Log-probabilities at the token, if the request asked for them.
      is_cut: Whether the end is that of the server, whose time to drain has passed.
    """

    request_id: str
    token: int | None
    time_s: float
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    retry_after_s: float | None = None
    logprobs: TokenLogprobs | None = None
    is_cut: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class PredictorStatus:
    """The predictor that prices the steps, and its state.

    Attributes:
      name: "table", "linear", "mlp" or "auto".
      fallback: Fault for which the table replaces a checkpoint; "" if it does not.
      num_refits: Number of models refitted or trained since start.
      num_replaced: Number of invalid predictions that were replaced.
      kinds: By kind of step, the predictor that serves and how wrong it was lately:
        the fields of `jserve_sched.timing.best.KindErrors`.
    """

    name: str = "table"
    fallback: str = ""
    num_refits: int = 0
    num_replaced: int = 0
    kinds: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class ProgramStart:
    """One program, in the start-up table.

    Attributes:
      program: Its bucket, such as "B32xNB16".
      trace_s: Seconds to trace and lower it; 0 if it was stored.
      compile_s: Seconds to compile it, or to find it in a cache and load it.
      executable_bytes: Its size on disk; None if it is not stored.
      source: "compiled", "cache" (JAX's persistent one) or "stored" (an executable).
      end_s: Time at which it was made, seconds on the engine loop's clock.
    """

    program: str
    trace_s: float
    compile_s: float
    executable_bytes: int | None
    source: str
    end_s: float = 0.0

    @property
    def start_s(self) -> float:
        """Time at which its making began, seconds on the engine loop's clock."""
        return self.end_s - self.trace_s - self.compile_s


@dataclasses.dataclass(frozen=True, slots=True)
class StartUp:
    """Times of start-up, in seconds from the start of the program.

    Attributes:
      ready_s: Time until requests were served; None before that.
      warm_s: Time until all was compiled and timed; None before that.
      covering_s: Part of `ready_s` spent compiling the covering table.
      wall_s: Seconds spent making programs so far, several at a time.
      programs: Programs made so far, in the order in which they were made.
      stage: Present stage, and how far it is.
    """

    ready_s: float | None = None
    warm_s: float | None = None
    covering_s: float = 0.0
    wall_s: float = 0.0
    programs: tuple[ProgramStart, ...] = ()
    stage: Stage = dataclasses.field(default_factory=Stage)


@dataclasses.dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine for health and metrics; counters since start.

    Attributes:
      block_tokens: Tokens in one prefill block, Q.
      buckets: Buckets in which steps are planned.
      num_running: Requests that hold KV pages.
      num_free_pages: KV pages that no running request holds.
      num_programs: Programs compiled so far.
      num_programs_total: Programs there will be, unless a limit ends warm-up first.
      num_compiles_after_warmup: Compilations while warm; anything but 0 is a bug.
      prompt_tokens: Prompt tokens of requests admitted.
      prefix_hit_tokens: Prompt tokens found in the prefix cache.
      generated_tokens: Output tokens.
      compile_s: Wall seconds spent compiling at start-up.
      is_recording: Whether steps are recorded in the step log; None without one.
      length_errors: Predicted output lengths against actual ones, by service class.
      searches: Number and time of a policy's searches.
    """

    health: Health
    policy: str
    block_tokens: int
    buckets: BucketTable
    num_running: int
    num_waiting: int
    num_pages: int
    num_free_pages: int
    num_programs: int
    num_programs_total: int
    num_compiles_after_warmup: int
    num_preemptions: int
    num_steps: int
    prompt_tokens: int
    prefix_hit_tokens: int
    generated_tokens: int
    compile_s: float
    predictor: PredictorStatus = dataclasses.field(default_factory=PredictorStatus)
    start_up: StartUp = StartUp()
    is_recording: bool | None = None
    length_errors: dict[str, LengthErrors] = dataclasses.field(default_factory=dict)
    searches: SearchTotals = dataclasses.field(default_factory=SearchTotals)
