import logging

import pytest

from jserve.engine.memory import MemoryNeeds, claim_memory, fit_memory
from jserve_sched.buckets.growth import BucketPlan, plan_growth
from jserve_sched.buckets.table import BucketTable

MIB = 2**20
PLAN = plan_growth(BucketTable((1, 4, 16), (0, 1, 4)), lambda table: 1.0)
CODE_BYTES = (8 + 6 * 4) * MIB
NEEDS = MemoryNeeds(
    weight_bytes=1000 * MIB,
    page_bytes=MIB,
    fixed_bytes=2 * MIB,
    page_size=128,
    max_model_len=1000,  # 8 pages
    num_layers=6,
    step_bytes={one: one.num_tokens * MIB for one in PLAN.final.buckets},
)
REQUEST_BYTES = (2 + 8) * MIB
# With weights, the largest step (144 tokens) and the code of two programs.
LEAST_BYTES = 1000 * MIB + 144 * MIB + 2 * CODE_BYTES + REQUEST_BYTES


def fit(device_bytes: int, kv_cache_bytes: int = 0) -> tuple[BucketPlan, int]:
    return fit_memory(
        NEEDS, PLAN, device_bytes=device_bytes, kv_cache_bytes=kv_cache_bytes
    )


def test_the_pool_gets_what_is_left() -> None:
    plan, kv_bytes = fit(10_000 * MIB)
    assert plan == PLAN
    others = 1144 * MIB + PLAN.final.num_programs * CODE_BYTES
    assert 0.96 * (10_000 * MIB - others) < kv_bytes <= 10_000 * MIB - others
    assert fit(9_999 * MIB)[1] == kv_bytes  # with the same programs
    assert fit(10_000 * MIB, 77 * MIB) == (PLAN, 77 * MIB)


def test_edges_go_until_one_request_fits(caplog: pytest.LogCaptureFixture) -> None:
    one_more = PLAN.tables[1].num_programs - 2
    with caplog.at_level(logging.WARNING, logger="jserve"):
        plan, kv_bytes = fit(LEAST_BYTES + one_more * CODE_BYTES)
    assert (plan.tables, kv_bytes) == (PLAN.tables[:2], REQUEST_BYTES)
    assert "programs are left out, so that 0.01 GiB of KV fit" in caplog.text


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    assert fit(LEAST_BYTES) == (BucketPlan(PLAN.tables[:1]), REQUEST_BYTES)
    message = "max_model_len=1000: 0.01 .* 0.98 .* 0.20 .* 144 .* 1.19 .* 896 tokens"
    with pytest.raises(ValueError, match=message):
        fit(LEAST_BYTES - 1)
    with pytest.raises(ValueError, match=r"kv_cache_bytes=12582912: .* 1024 tokens"):
        fit(LEAST_BYTES, 12 * MIB)
    with pytest.raises(ValueError, match="room for 0 tokens"):
        fit(MIB)


def test_the_share_of_a_gpu_is_set_unless_a_user_has() -> None:
    environ = dict[str, str]()
    claim_memory(environ, 0.8)
    claim_memory(environ, 0.7)
    assert environ == {"XLA_CLIENT_MEM_FRACTION": "0.8"}
    environ = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}  # JAX takes one of the two
    claim_memory(environ, 0.8)
    assert environ == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
