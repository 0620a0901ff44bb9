"""Which predictor an engine plans by, and what becomes of it when it is no good.

The one idea: the step-time table of the timed pass always exists, so everything else
may fail. `linear` starts from the table and is refitted while serving; the folder of a
checkpoint is a trained network, or else one warning, and the table.
"""

import logging
import pathlib

import numpy as np

from jserve.events import PredictorStatus
from jserve.predictor_checkpoint import (
    CheckpointError,
    PredictorFacts,
    load_checkpoint,
)
from jserve.refit import Refitter
from jserve_sched.buckets import BucketTable
from jserve_sched.features import uniform_features
from jserve_sched.linear_predictor import LinearPredictor, fit_linear
from jserve_sched.mlp_predictor import MlpPredictor
from jserve_sched.predictor import Predictor, SafePredictor
from jserve_sched.table_predictor import TablePredictor

_LOG = logging.getLogger("jserve")
TABLE, LINEAR, MLP = "table", "linear", "mlp"


class ServingPredictor:
    """The predictor that plans, who it is, and the thread that refits it, if any.

    Attributes:
      predictor: what the scheduler asks.
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
          table: ready to use.
          chosen: plans in its place; None for the table itself.
          fallback: why the table stands in for a checkpoint; "" if it does not.
        """
        self._fallback = fallback
        self._safe: SafePredictor | None = None
        self._linear: LinearPredictor | None = None
        self._refitter: Refitter | None = None
        self._name = TABLE
        self.predictor: Predictor = table
        if chosen is None:
            return
        self.predictor = self._safe = SafePredictor(chosen, table)
        self._name = MLP
        if isinstance(chosen, LinearPredictor):
            self._name = LINEAR
            self._linear = chosen
            self._refitter = Refitter(chosen)

    def start(self) -> None:
        """Begins to refit, if this predictor is one to be refitted."""
        if self._refitter is not None:
            self._refitter.start()

    def stop(self) -> None:
        """Ends the refits."""
        if self._refitter is not None:
            self._refitter.stop()

    def status(self) -> PredictorStatus:
        """Returns a snapshot for metrics."""
        return PredictorStatus(
            name=self._name,
            fallback=self._fallback,
            num_refits=self._linear.num_refits if self._linear else 0,
            num_replaced=self._safe.num_replaced if self._safe else 0,
        )


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
      table: filled by the timed pass.
      buckets: the compiled shapes.
      expected: what a checkpoint must have been measured with.
      max_pages_per_row: KV pages of the longest context.
    """
    if name == TABLE:
        return ServingPredictor(table)
    if name == LINEAR:
        rows = table_samples(
            table,
            buckets,
            page_size=expected.page_size,
            max_pages_per_row=max_pages_per_row,
        )
        model = fit_linear(rows[:, :-1], rows[:, -1], min_expert_samples=1)
        return ServingPredictor(table, chosen=LinearPredictor(model, anchors=rows))
    try:
        weights, facts = load_checkpoint(pathlib.Path(name), expected=expected)
    except CheckpointError as error:
        _LOG.warning("%s: steps are priced by the step-time table instead", error)
        return ServingPredictor(table, fallback=error.fault.value)
    _LOG.info("steps are priced by %s, trained at commit %r", name, facts.commit)
    return ServingPredictor(table, chosen=MlpPredictor(weights))


def table_samples(
    table: TablePredictor,
    buckets: BucketTable,
    *,
    page_size: int,
    max_pages_per_row: int,
) -> np.ndarray:
    """Returns what the table says of full steps, `[N, F + 1]`: features, seconds.

    Every compiled shape, at one page, at the longest context and between; without
    decodes, without prefill and with both.

    Args:
      table: filled by the timed pass.
      buckets: the compiled shapes.
      page_size: tokens in one KV page.
      max_pages_per_row: KV pages of the longest context.
    """
    pages = sorted({1, max(round(max_pages_per_row**0.5), 1), max_pages_per_row})
    rows = [
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
    matrix = np.stack(rows)
    return np.concatenate((matrix, table.predict(matrix)[:, None]), axis=1)
