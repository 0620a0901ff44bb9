"""A step-time table filled from a cost model, as a server's is from its timed pass."""

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.simulation.cost_model import CostModel
from jserve_sched.steps.features import uniform_features
from jserve_sched.timing.predictor import StepSample
from jserve_sched.timing.table import TablePredictor


def priced_table(
    cost_model: CostModel, buckets: BucketTable, *, max_model_len: int
) -> TablePredictor:
    """Returns a table of each bucket's time at short and at the longest contexts."""
    page_size = cost_model.page_size
    pages = -(-max_model_len // page_size)
    matrix = np.stack(
        [
            uniform_features(
                bucket,
                decode_pages=decode_pages,
                block_pages=block_pages,
                page_size=page_size,
            )
            for bucket in buckets.buckets
            for decode_pages, block_pages in ((1, 1), (pages, 1), (1, pages))
            if bucket.num_blocks or block_pages == 1
        ]
    )
    times_s = cost_model.step_s(matrix, buckets.block_tokens).tolist()
    table = TablePredictor(buckets)
    table.fit(map(StepSample, matrix, times_s))
    return table
