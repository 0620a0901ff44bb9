"""Keeps the book on output lengths: predicted on arrival, settled at the end.

The one idea: when the estimator has learned something, a long queue is not predicted
anew between two steps, but some of it after each, until all of it has been. News that
come meanwhile start another round after that, so the tail is not passed over.
"""

import collections

from jserve_sched.length_errors import LengthErrors, errors_of_one
from jserve_sched.length_estimates import LengthEstimator
from jserve_sched.request import Request, RequestState
from jserve_sched.waiting import WaitingQueue

MAX_ANEW = 256  # waiting requests that are predicted anew after one step


class LengthBook:
    """Has answers predicted, and the estimator told of those that ended.

    Attributes:
      errors: predicted lengths against actual ones, by service class.
    """

    def __init__(self, estimator: LengthEstimator, waiting: WaitingQueue):
        """Opens one.

        Args:
          estimator: predicts.
          waiting: the queue whose requests are predicted anew.
        """
        self.errors: dict[str, LengthErrors] = {}
        self._estimator = estimator
        self._waiting = waiting
        self._stale: collections.deque[Request] = collections.deque()
        self._has_news = False  # since the last round began

    def enter(self, request: Request) -> None:
        """Predicts the answer to a request that is new."""
        request.predict(self._estimator.estimate(request))
        request.first_predicted_tokens = request.predicted_output_tokens

    def settle(self, request: Request) -> None:
        """Learns from a request that ended by a stop token or at `max_tokens`."""
        if request.stop_token_ids:  # else there was nothing to predict
            name, predicted = request.service_class, request.first_predicted_tokens
            one = errors_of_one(len(request.output_tokens), predicted)
            self.errors[name] = self.errors.get(name, LengthErrors()) + one
        if self._estimator.update(request):
            self._has_news = True

    def catch_up(self) -> bool:
        """Predicts some of the queue anew, if the estimator has learned something.

        Returns:
          Whether that was the last of a round.
        """
        if self._has_news and not self._stale:
            self._stale.extend(self._waiting.requests)
            self._has_news = False
        if not self._stale:
            return False
        for _ in range(min(len(self._stale), MAX_ANEW)):
            request = self._stale.popleft()
            if request.state is RequestState.WAITING:
                self._waiting.predict(request, self._estimator.estimate(request))
        return not self._stale
