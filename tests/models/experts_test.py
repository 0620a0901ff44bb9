"""Experts grouped by token, one after the other, and written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jserve_models.config import NAMED, Experts
from jserve_models.layers import ExpertFeedForward
from jserve_models.matrices import quantise

CONFIG = dataclasses.replace(
    NAMED["tiny"],
    num_layers=1,
    hidden_size=16,
    intermediate_size=24,
    experts=Experts(count=6, per_token=2, renormalises=False),
)


@pytest.fixture(params=["auto", "int8"])
def part(request):
    """Returns one layer's part, which may be stored in fewer bits."""
    found = ExpertFeedForward(CONFIG, jnp.float32)
    rng = np.random.default_rng(0)
    for name in ("router", "gate", "up", "down"):
        kernel = getattr(found, name).kernel
        value = jnp.asarray(0.3 * rng.normal(size=kernel.shape[1:]), jnp.float32)
        is_quantised = request.param == "int8" and name != "router"
        stored = quantise(value, "int8") if is_quantised else value
        getattr(found, name).kernel = nnx.Param(stored)
    return found


def matrix(linear, expert):
    value = linear.kernel.get_value()
    whole = getattr(value, "values", value)[expert].astype(np.float32)
    return np.asarray(whole * getattr(value, "scale", np.ones(6))[expert])


def test_both_ways_equal_each_expert_by_itself(part):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(7, 16)), jnp.float32)
    shares = np.asarray(jax.nn.softmax(part.router(x)))
    wanted = np.zeros_like(x)
    for token, row in enumerate(shares):
        for expert in np.argsort(row)[-2:]:
            gate, up, down = (
                matrix(linear, expert) for linear in (part.gate, part.up, part.down)
            )
            wide = jax.nn.silu(x[token] @ gate) * (x[token] @ up)
            wanted[token] += row[expert] * (wide @ down)
    best, chosen = jax.lax.top_k(jnp.asarray(shares), 2)
    for way in (part._grouped, part._one_by_one):
        found = jax.jit(way)(x, best, chosen)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    # A token's bits do not depend on its neighbours.
    others = jax.jit(part)(x.at[3:].set(1.0))
    np.testing.assert_array_equal(others[:3], jax.jit(part)(x)[:3])
