import dataclasses

import numpy as np
import pytest

from jserve.config import EngineConfig
from jserve.timing.roofline_prior import decoder_of, find_device, first_table
from jserve_models.config import NAMED, Experts
from jserve_sched.buckets.table import BucketTable
from jserve_sched.simulation.roofline import DEVICES, roofline_cost
from jserve_sched.steps.features import uniform_features
from jserve_sched.timing.table import TablePredictor

BUCKETS = BucketTable((8, 64), (0, 4, 32))
LLAMA = NAMED["llama-8b"]
CONFIG = EngineConfig(page_size=128)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtxpro6000"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
        ("TPU v5 lite", "v5e"),
        ("TPU v6 lite", "v6e"),
        ("cpu", None),
    ],
)
def test_a_device_is_found_by_the_kind_that_jax_names(
    kind: str, name: str | None
) -> None:
    assert find_device(kind) == name


def predicted_s(kind: str, model=LLAMA) -> np.ndarray:
    table = first_table(CONFIG, model, BUCKETS, device_kind=kind, max_model_len=8192)
    return table.predict(matrix())


def matrix() -> np.ndarray:
    sizes = {"decode_pages": 8, "block_pages": 4, "page_size": CONFIG.page_size}
    return np.stack([uniform_features(one, **sizes) for one in BUCKETS.buckets])


def test_a_known_device_prices_steps_before_any_was_timed() -> None:
    cost = roofline_cost("h200", DEVICES["h200"], decoder_of(LLAMA))
    expected_s = cost.step_s(matrix(), BUCKETS.block_tokens)
    assert predicted_s("NVIDIA H200") == pytest.approx(expected_s, rel=0.1)


def test_an_unknown_device_or_a_model_of_experts_keeps_the_guess() -> None:
    guess_s = TablePredictor(BUCKETS).predict(matrix())
    assert predicted_s("cpu") == pytest.approx(guess_s)
    experts = dataclasses.replace(LLAMA, experts=Experts(count=8, per_token=2))
    assert predicted_s("NVIDIA H200", experts) == pytest.approx(guess_s)
