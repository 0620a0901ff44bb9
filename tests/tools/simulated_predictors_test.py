"""What simulated policies plan by: near the machine, and filled as a server does."""

import numpy as np
import pytest

from jserve_sched import features
from jserve_sched.bucket_strategies import Continuous, PowersOfTwo
from jserve_sched.cost_model import CLOSED_FORMS
from jserve_tools.simulated_predictors import make_predictor, random_batches

A100 = CLOSED_FORMS["a100-llama3-8b"]


@pytest.mark.parametrize(("name", "most"), [("oracle", 0.0), ("linear", 0.06)])
def test_predictors_are_near_the_machine(name: str, most: float) -> None:
    table = Continuous().table(
        max_num_seqs=256, max_num_batched_tokens=2048, block_tokens=1
    )
    batches = random_batches(
        A100,
        table,
        max_model_len=16_384,
        num_batches=300,
        rng=np.random.default_rng(99),
    )
    kinds = np.bincount(features.scenarios(batches))
    assert kinds.tolist() == [100, 100, 100]
    assert batches[:, features.NUM_BLOCKS].max() > 1000
    predictor = make_predictor(name, A100, table, max_model_len=16_384)
    wanted = A100.step_s(batches, 1)
    errors = np.abs(predictor.predict(batches) - wanted) / wanted
    assert errors.mean() <= most


def test_the_table_is_filled_as_a_server_fills_it() -> None:
    table = PowersOfTwo().table(
        max_num_seqs=64, max_num_batched_tokens=1024, block_tokens=32
    )
    predictor = make_predictor("table", A100, table, max_model_len=4096)
    full = features.uniform_features(
        table.fit(64, 0), decode_pages=1, block_pages=0, page_size=128
    )[None]
    assert predictor.predict(full) == pytest.approx(A100.step_s(full, 32), rel=1e-6)
    with pytest.raises(ValueError, match="use oracle or linear"):
        make_predictor(
            "table",
            A100,
            Continuous().table(
                max_num_seqs=256, max_num_batched_tokens=2048, block_tokens=1
            ),
            max_model_len=4096,
        )
    with pytest.raises(ValueError, match="'tarot' is unknown"):
        make_predictor("tarot", A100, table, max_model_len=4096)
