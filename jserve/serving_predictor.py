"""Which predictor an engine plans by, and what happens when it cannot be used.

The step-time table of the timed pass always exists, so everything else may fail.
`linear` starts from the table and is refitted while serving; the folder of a checkpoint
is a trained network, or else one warning, and the table.
"""

import logging
import pathlib
import threading

import numpy as np

from jserve.events import PredictorStatus
from jserve.predictor_checkpoint import CheckpointError, PredictorFacts, load_checkpoint
from jserve_sched.buckets import BucketTable
from jserve_sched.features import uniform_features
from jserve_sched.linear_predictor import LinearPredictor, fit_linear
from jserve_sched.mlp_predictor import MlpPredictor
from jserve_sched.predictor import Predictor, SafePredictor
from jserve_sched.table_predictor import TablePredictor

_LOG = logging.getLogger("jserve")
_REFIT_INTERVAL_S = 1.0  # between two looks whether a refit is due


class ServingPredictor:
    """The predictor that plans, and the thread that refits it if it is `linear`.

    Attributes:
      predictor: Answers the scheduler.
    """

    def __init__(
        self,
        table: TablePredictor,
        *,
        chosen: LinearPredictor | MlpPredictor | None = None,
        fallback: str = "",
    ):
        """Puts the parts together.

        Args:
          table: Filled by the timed pass.
          chosen: Plans in its place; None for the table itself.
          fallback: Why the table stands in for a checkpoint; "" if it does not.
        """
        self.predictor: Predictor = table
        if chosen is not None:
            self.predictor = SafePredictor(chosen, table)
        self._chosen = chosen
        self._fallback = fallback
        self._stopping = threading.Event()
        self._refits = threading.Thread(target=self._refit, name="refit", daemon=True)

    def start(self) -> None:
        """Starts the refits of `linear`."""
        if isinstance(self._chosen, LinearPredictor):
            self._refits.start()

    def stop(self) -> None:
        """Ends the refits; waits for a fit in progress, which takes milliseconds."""
        self._stopping.set()
        if self._refits.is_alive():
            self._refits.join()

    def status(self) -> PredictorStatus:
        """Returns a snapshot for metrics."""
        names = {LinearPredictor: "linear", MlpPredictor: "mlp"}
        return PredictorStatus(
            name=names.get(type(self._chosen), "table"),
            fallback=self._fallback,
            num_refits=getattr(self._chosen, "num_refits", 0),
            num_replaced=getattr(self.predictor, "num_replaced", 0),
        )

    def _refit(self) -> None:
        """Fits what the engine's thread has stored, never in its way."""
        assert isinstance(self._chosen, LinearPredictor)
        has_warned = False
        while not self._stopping.wait(_REFIT_INTERVAL_S):
            try:
                self._chosen.refit()
            except ValueError as error:
                if not has_warned:
                    _LOG.warning("the step-time model stays as it is: %s", error)
                has_warned = True


def choose_predictor(
    name: str,
    table: TablePredictor,
    *,
    buckets: BucketTable,
    expected: PredictorFacts,
    max_pages_per_row: int,
) -> ServingPredictor:
    """Returns the predictor that `EngineConfig.predictor` asks for.

    Args:
      name: "table", "linear", or the folder of a checkpoint.
      table: Filled by the timed pass.
      buckets: The compiled shapes.
      expected: Facts that a checkpoint must have been measured with.
      max_pages_per_row: KV pages of the longest context.
    """
    if name == "table":
        return ServingPredictor(table)
    if name == "linear":
        matrix = full_steps(
            buckets, page_size=expected.page_size, max_pages_per_row=max_pages_per_row
        )
        step_s = table.predict(matrix)
        model = fit_linear(matrix, step_s, min_expert_samples=1)
        anchors = np.column_stack((matrix, step_s))
        return ServingPredictor(table, chosen=LinearPredictor(model, anchors=anchors))
    try:
        weights, facts = load_checkpoint(pathlib.Path(name), expected=expected)
    except CheckpointError as error:
        _LOG.warning("%s: steps are priced by the step-time table instead", error)
        return ServingPredictor(table, fallback=error.fault)
    _LOG.info("steps are priced by %s, trained at commit %r", name, facts.commit)
    return ServingPredictor(table, chosen=MlpPredictor(weights))


def full_steps(
    buckets: BucketTable, *, page_size: int, max_pages_per_row: int
) -> np.ndarray:
    """Returns features `[N, F]` of full steps of every compiled shape.

    At one page, at the longest context and between; without decodes, without prefill
    and with both.

    Args:
      buckets: The compiled shapes.
      page_size: Tokens in one KV page.
      max_pages_per_row: KV pages of the longest context.
    """
    pages = sorted({1, max(round(max_pages_per_row**0.5), 1), max_pages_per_row})
    return np.stack(
        [
            uniform_features(
                bucket,
                decode_pages=decode_pages,
                block_pages=block_pages,
                page_size=page_size,
            )
            for bucket in buckets.buckets
            for decode_pages in (0, *pages)
            for block_pages in ((0, *pages) if bucket.num_blocks else (0,))
            if decode_pages or block_pages
        ]
    )
