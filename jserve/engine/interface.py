"""The engine as the server, its metrics and the benchmark see it."""

from collections.abc import Callable, Sequence
from typing import Protocol

from jserve.config import EngineConfig
from jserve.records.events import EngineStats, Health, TokenEvent
from jserve_sched.requests.forecast import Forecast
from jserve_sched.requests.limits import RequestLimits
from jserve_sched.requests.request import Request
from jserve_sched.steps.record import StepRecord

Listener = Callable[[Sequence[TokenEvent]], object]
"""Takes the new tokens of one step."""


class ServingEngine(Protocol):
    """An engine that serves, whatever makes its steps; any thread may call it.

    Arrivals, deadlines and events are at times of `time.monotonic`.

    `set_listener`, then `start`, then requests once its health is READY, and `stop`.

    Attributes:
      config: Settings, with the bucket strategy by name.
      model_name: Name of the model.
      vocab_size: Number of token ids; all are below it.
      limits: Sizes that a single request may have.
      health: How far start-up has come, or how far the end.
    """

    config: EngineConfig
    model_name: str
    vocab_size: int
    limits: RequestLimits
    health: Health

    def set_listener(self, publish: Listener, /) -> None:
        """Sets the function that is called once a step, in the engine's thread."""

    def start(self) -> None:
        """Begins to warm up, and to serve as soon as that is possible."""

    def check_open(self) -> None:
        """Checks that one more request would be taken now, of any size.

        Raises:
          QueueFullError: If too many wait.
          NotServingError: While starting, draining or failed.
        """

    def forecast(self, request: Request, /) -> Forecast:
        """Returns when the tokens of a request that is not submitted would come.

        `submit` makes one, too, and leaves it as the request's `forecast`.

        Raises:
          NotServingError: While starting, draining or failed.
        """

    def submit(self, request: Request) -> None:
        """Takes a request; its tokens, and its end, come to the listener.

        Raises:
          TooLongError: If it can never run.
          ValueError: If its id is in use.
          QueueFullError: If too many wait.
          NotServingError: While starting, draining or failed.
        """

    def cancel(self, request_id: str) -> None:
        """Ends a request after the step in flight; ids that are gone are ignored."""

    def check_progress(self) -> None:
        """Fails the engine if a step has taken far too long."""

    def stats(self) -> EngineStats:
        """Returns a snapshot of counters for health and metrics."""

    def steps(self, since: int = 0) -> list[StepRecord]:
        """Returns the records of steps `since` and later that are remembered."""

    def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and lets the others finish.

        Returns:
          Whether all finished; those left after `timeout_s` are cancelled.
        """

    def stop(self) -> None:
        """Ends the engine; requests still live are cancelled."""
