"""Names and folders become models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve_models.attention import cpu
from jserve_models.config import NAMED
from jserve_models.decoder import Decoder
from jserve_models.registry import abstract_model, load_model
from jserve_models.sharding import make_mesh
from tests import TESTS

GOLDEN = TESTS / "golden"


def test_every_leaf_says_how_it_may_be_sharded():
    config = dataclasses.replace(NAMED["tiny"], qkv_bias=True, qk_norm=True)
    axes = {leaf.path: leaf.axes for leaf in Decoder(config).leaves}
    assert axes["embedding"] == ("vocab", None)
    assert axes["layers.attention.q.kernel"] == ("layers", None, "heads")
    assert axes["layers.attention.k.bias"] == ("layers", "kv_heads")
    assert axes["layers.attention.q_norm.weight"] == ("layers", None)
    assert axes["layers.feed_forward.down.kernel"] == ("layers", "mlp", None)
    assert len(axes) == 17


def test_a_seed_draws_the_same_weights():
    first, again, other = (
        load_model("tiny", seed=seed, dtype="float32").leaves for seed in (3, 3, 4)
    )
    is_same = functools.partial(jax.tree.map, np.array_equal)
    assert all(jax.tree.leaves(is_same(first, again)))
    assert not all(jax.tree.leaves(is_same(first, other)))


def test_an_abstract_model_has_the_shapes_of_a_loaded_one():
    loaded = load_model("tiny", seed=3, dtype="float32")
    shapes = abstract_model(
        loaded.config, dtype="float32", attention=cpu, mesh=make_mesh()
    )

    def facts(leaves):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), leaves)

    assert facts(shapes.leaves) == facts(loaded.leaves)
    assert shapes.attention is loaded.attention


def test_a_folder_is_loaded_in_the_type_asked_for():
    model = load_model(str(GOLDEN / "llama"), seed=0, dtype="bfloat16")
    assert model.config.name == "llama"
    assert {leaf.dtype for leaf in jax.tree.leaves(model.leaves)} == {
        jnp.dtype("bfloat16")
    }


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'huge' is neither .* one of .*tiny"):
        load_model("huge", seed=0, dtype="float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads=8 is not a multiple of num_kv_heads=3"),
        ({"head_dim": 31}, "head_dim=31 is odd"),
        ({"num_layers": 0}, "num_layers=0 is below 1"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NAMED["tiny"], **change)
