"""Cost models: formulas by hand, padding charged, a profile as the machine."""

import numpy as np
import pytest

from jserve_sched.buckets.table import Bucket
from jserve_sched.simulation.cost_model import (
    CLOSED_FORMS,
    OraclePredictor,
    PredictorCost,
)
from jserve_sched.steps import features
from tests.fakes import make_features

A100 = CLOSED_FORMS["a100-llama3-8b"]


def row(bucket: Bucket, **columns: float) -> np.ndarray:
    sizes = {"NUM_ROWS": bucket.num_rows, "NUM_BLOCKS": bucket.num_blocks}
    return make_features(**sizes, **columns)


def test_the_a100_formula_by_hand() -> None:
    # A chunk of 1,000 after 500, 9 decodes over 9,000 cached tokens:
    # 7.51 + 0.06551 (1000 + 9) + 4.396e-6 * 1000 * (500 + 500) + 8.415e-5 * 9009 ms.
    step = row(
        Bucket(9, 1000, 1),
        PREFILL_WORK=1000 * 1500,
        CHUNK_SQUARES=1e6,
        NUM_DECODES=9,
        DECODE_CONTEXT=9000,
        PREFILL_TOKENS=1000,
    )
    ms = 7.51 + 0.06551 * 1009 + 4.396 + 8.415e-5 * 9009
    assert A100.step_s(step, 1)[0] == pytest.approx(ms * 1e-3, rel=1e-12)
    # Below the knee the floor holds.
    lone = row(Bucket(1, 0, 1), NUM_DECODES=1, DECODE_CONTEXT=999)
    assert A100.step_s(lone, 1)[0] == pytest.approx(10.73e-3 + 8.415e-5, rel=1e-12)


def test_each_kind_of_batch_has_its_formula_and_padding_is_charged() -> None:
    card = CLOSED_FORMS["rtx4090-llama3.1-8b"]
    decodes = row(Bucket(8, 0, 16), NUM_DECODES=5, DECODE_CONTEXT=995)
    assert card.step_s(decodes, 16)[0] == pytest.approx(
        (16.88 + 0.04197 * 8 + 1.493e-4 * 1000) * 1e-3, rel=1e-12
    )
    # 20 tokens in two blocks of 16: 32 positions; empty decode rows are free.
    prompt = row(
        Bucket(8, 2, 16), PREFILL_WORK=400, CHUNK_SQUARES=400, PREFILL_TOKENS=20
    )
    assert card.step_s(prompt, 16)[0] == pytest.approx(
        (15.51 + 0.06330 * 32 + 4.839e-6 * 200) * 1e-3, rel=1e-12
    )


def test_a_profile_of_the_engine_can_be_the_machine() -> None:
    # Fitted at blocks of 32, asked at blocks of one token: the same positions.
    cost = PredictorCost(
        name="engine",
        predictor=OraclePredictor(A100, 32),
        block_tokens=32,
        num_kv_tokens=1024,
        page_size=8,
        max_num_seqs=4,
        max_num_batched_tokens=256,
    )
    step = row(Bucket(0, 64, 1), PREFILL_TOKENS=64)
    assert cost.step_s(step, 1) == pytest.approx(A100.step_s(step, 1), rel=1e-12)
    assert step[0, features.NUM_BLOCKS] == 64
