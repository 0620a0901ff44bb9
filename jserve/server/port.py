"""What the server asks of an engine loop; jserve.loop has the real one."""

from collections.abc import Callable, Sequence
from typing import Protocol

from jserve.config import EngineConfig
from jserve.events import EngineStats, Health, StepRecord, TokenEvent
from jserve_sched.clock import Clock
from jserve_sched.request import Request


class EnginePort(Protocol):
    """An engine that runs in a thread of its own; every method is thread-safe.

    Attributes:
      max_model_len: most tokens of prompt and output together.
      vocab_size: token ids are below this.
      num_kv_tokens: tokens the KV pool holds.
      config: what it was told.
      model_name: the model's own name.
      clock: of arrivals and events.
    """

    max_model_len: int
    vocab_size: int
    num_kv_tokens: int
    config: EngineConfig
    model_name: str
    clock: Clock

    def set_listener(self, publish: Callable[[Sequence[TokenEvent]], None]) -> None:
        """Says who takes each step's events, in the engine's thread."""
        ...

    def start(self) -> None:
        """Starts the thread: compile, then serve."""
        ...

    @property
    def health(self) -> Health:
        """How far start-up has come."""
        ...

    def check_open(self) -> None:
        """Raises QueueFullError or NotServingError if no request is taken now."""
        ...

    def submit(self, request: Request) -> None:
        """Takes a request, or raises ValueError, QueueFullError, NotServingError."""
        ...

    def cancel(self, request_id: str) -> None:
        """Ends a request; unknown ids are ignored."""
        ...

    def stats(self) -> EngineStats:
        """Returns a snapshot."""
        ...

    def steps(self, since: int = 0) -> list[StepRecord]:
        """Returns the records kept of steps from number `since`."""
        ...

    def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and lets the others end; whether all did in time."""
        ...

    def stop(self) -> None:
        """Ends the thread."""
        ...
