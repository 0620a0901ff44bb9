"""The arithmetic of roofline costs is that of the engine's own programs."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve.engine.program_kinds import Head, Program
from jserve.engine.programs import DeviceState, Programs
from jserve.engine.sampling import empty_slots
from jserve.timing.roofline_prior import decoder_of
from jserve_models.attention import page_loop
from jserve_models.config import ModelConfig
from jserve_models.registry import abstract_model
from jserve_models.sharding import make_mesh, placement
from jserve_sched.buckets.table import Bucket
from jserve_sched.simulation.roofline import DEVICES, roofline_cost
from jserve_sched.steps.features import uniform_features

PAGES, PAGE_SIZE = 3, 512
CONFIG = ModelConfig(
    name="small",
    vocab_size=2048,
    hidden_size=512,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=256,
    intermediate_size=1792,
    max_model_len=PAGES * PAGE_SIZE,
)


def analysis(program: Program, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """XLA's cost analysis of a program whose loops over pages are unrolled."""
    mesh = make_mesh()
    model = abstract_model(CONFIG, dtype=jnp.bfloat16, mesh=mesh, attention=page_loop)
    (kv,) = model.kv_shapes(8, PAGE_SIZE)
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=placement(mesh))
    slot_tokens, tables = (shape(size, np.int32) for size in ((16,), (17, PAGES)))
    sampler = jax.tree.map(lambda one: shape(one.shape, one.dtype), empty_slots(16, 8))
    arrays: Any = (shape(kv, jnp.bfloat16),), slot_tokens, tables, sampler
    monkeypatch.setattr(
        jax.lax,
        "fori_loop",
        lambda _, __, body, value: functools.reduce(
            lambda value, index: body(jnp.int32(index), value), range(PAGES), value
        ),
    )
    programs = Programs(
        model=model,
        state=DeviceState(*arrays),
        captures_logits=False,
    )
    found: Any = programs.lower(program).cost_analysis()
    return dict(found)


@pytest.mark.parametrize("bucket", [Bucket(1, 0), Bucket(8, 4)], ids=str)
def test_a_step_does_what_roofline_costs_charge(bucket: Bucket, monkeypatch) -> None:
    costs = roofline_cost("h200", DEVICES["h200"], decoder_of(CONFIG))
    costs = dataclasses.replace(costs, page_size=PAGE_SIZE)
    full = uniform_features(
        bucket,
        decode_pages=PAGES,
        block_pages=PAGES if bucket.num_blocks else 0,
        page_size=PAGE_SIZE,
    )
    work = costs.work(full[None], bucket.block_tokens)
    head = work.pop("head")
    for program, parts in (
        (bucket, [*work.values()]),
        (Head(bucket.num_rows, is_drawn=False), [head]),
    ):
        operations, num_bytes = np.sum(parts, axis=(0, 2))
        found = analysis(program, monkeypatch)
        assert found["flops"] == pytest.approx(operations, rel=0.05)
        if bucket.num_blocks == 0:
            # Second operands are weights, keys and values. All else is activations,
            # which grow with tokens and which a device's kernels keep to themselves.
            second = found["bytes accessed1{}"]
            assert second == pytest.approx(num_bytes, rel=0.05)
