"""Refits the linear predictor beside the engine, never in its way.

The one idea: the engine's thread only stores samples. This thread looks once in a while
whether enough of them are new, fits, and swaps the model in by one assignment, so that
the next plan uses it. A fit that fails leaves the model as it is.
"""

import logging
import threading

import numpy as np

from jserve_sched.linear_predictor import LinearPredictor

_LOG = logging.getLogger("jserve")
DEFAULT_INTERVAL_S = 1.0


class Refitter:
    """A daemon thread that keeps one linear predictor fresh."""

    def __init__(
        self, predictor: LinearPredictor, *, interval_s: float = DEFAULT_INTERVAL_S
    ):
        """Makes one that `start` will run.

        Args:
          predictor: what to refit.
          interval_s: seconds between two looks at it.
        """
        self._predictor = predictor
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="refit", daemon=True)

    def start(self) -> None:
        """Begins to refit."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; waits for a fit in progress, which takes milliseconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _main(self) -> None:
        has_warned = False
        while not self._stopping.wait(self._interval_s):
            if not self._predictor.is_refit_due:
                continue
            try:
                model = self._predictor.refit()
            except (ValueError, np.linalg.LinAlgError) as error:
                if not has_warned:
                    _LOG.warning("the step-time model stays as it is: %s", error)
                has_warned = True
                continue
            if model is not None:
                self._predictor.swap(model)
