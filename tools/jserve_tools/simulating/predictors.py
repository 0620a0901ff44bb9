"""Predictors for a simulated machine: perfect, or fitted to samples of it.

On a real machine a policy plans by predictions. Therefore `linear` and `table` are
fitted to steps priced by the cost model, as the server's are to timed steps.
"""

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.requests.request import Request
from jserve_sched.simulation.cost_model import CostModel, OraclePredictor
from jserve_sched.simulation.priced_table import priced_table
from jserve_sched.steps.features import step_features
from jserve_sched.steps.plan import Row
from jserve_sched.timing.best import BestPredictor
from jserve_sched.timing.calibrated import CalibratedPredictor
from jserve_sched.timing.linear import LinearPredictor, fit_linear
from jserve_sched.timing.predictor import Predictor
from jserve_tools.training.step_grid import log_uniform

_MAX_CHUNKS = 4  # prompts that share a step
_LEAST_CONTEXT = 16
# A table holds a cell for each pair of edges and each pair of context bins.
_MAX_TABLE_BUCKETS = 4096


def random_batches(
    cost_model: CostModel,
    buckets: BucketTable,
    *,
    max_model_len: int,
    num_batches: int = 3000,
    seed: int = 0,
) -> np.ndarray:
    """Returns features `[num_batches, F]` of steps that the machine could run.

    A third each is decode only, prefill only and mixed. Rows, tokens and contexts are
    log-uniform up to the limits, since small steps are as common as large ones.
    """
    rng = np.random.default_rng(seed)
    one = Request(
        request_id="made up", arrival_s=0.0, prompt_tokens=np.zeros(1), max_tokens=1
    )

    rows = []
    for index in range(num_batches):
        kind = index % 3
        # Decodes: contexts from half of a common length to all of it.
        decodes: list[Row] = []
        kv_tokens = cost_model.num_kv_tokens
        if kind != 1:
            num_rows = log_uniform(rng, 1, cost_model.max_num_seqs)
            longest = min(kv_tokens // num_rows, max_model_len - 1)
            context = log_uniform(rng, min(_LEAST_CONTEXT, longest), longest)
            lengths = rng.uniform(0.5, 1.0, num_rows) * context
            decodes = [Row(one, int(length), 1, True) for length in lengths]
        # Prefill: blocks cut at random into chunks, half of which begin a prompt.
        chunks: list[Row] = []
        if kind != 0:
            most = cost_model.max_num_batched_tokens
            room = buckets.block_edge_beside(len(decodes), most)
            num_blocks = log_uniform(rng, 1, room)
            num_chunks = log_uniform(rng, 1, min(_MAX_CHUNKS, num_blocks))
            cuts = np.sort(rng.integers(1, num_blocks + 1, num_chunks - 1)).tolist()
            for begin, end in zip([0, *cuts], [*cuts, num_blocks], strict=True):
                tokens = (end - begin) * buckets.block_tokens
                if tokens:
                    start = log_uniform(rng, 1, max(max_model_len - tokens, 1)) - 1
                    is_first = rng.random() < 0.5
                    chunks.append(Row(one, 0 if is_first else start, tokens, True))
        # The bucket that holds them.
        blocks = sum(-(-row.num_tokens // buckets.block_tokens) for row in chunks)
        bucket = buckets.fit(len(decodes), blocks)
        rows.append(step_features(decodes, chunks, bucket, cost_model.page_size))
    return np.stack(rows)


def make_predictor(
    name: str, cost_model: CostModel, buckets: BucketTable, *, max_model_len: int
) -> Predictor:
    """Returns the predictor `oracle`, `linear` or `table` of a machine's steps.

    Raises:
      ValueError: If a table would be too large.
    """
    if name == "oracle":
        return OraclePredictor(cost_model, buckets.block_tokens)
    if name == "table":
        if buckets.num_programs > _MAX_TABLE_BUCKETS:
            raise ValueError(
                f"predictor=table needs at most {_MAX_TABLE_BUCKETS} buckets, not "
                f"{buckets.num_programs}; use oracle or linear with bucket strategy "
                "none"
            )
        table = priced_table(cost_model, buckets, max_model_len=max_model_len)
        return BestPredictor(CalibratedPredictor(table, name))
    matrix = random_batches(cost_model, buckets, max_model_len=max_model_len)
    model = fit_linear(matrix, cost_model.step_s(matrix, buckets.block_tokens))
    return BestPredictor(CalibratedPredictor(LinearPredictor(model), name))
