import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jserve.text.tokenizer import BYTE_CONTROL_TOKENS, ByteTokenizer
from jserve_models.config import NAMED
from jserve_models.decoder import Decoder, DecoderWeights
from jserve_models.random_weights import draw_weights
from jserve_models.registry import decoder_model
from jserve_models.sharding import make_mesh
from jserve_models.steps import StepShape
from jserve_models.trained_weights import packaged_checkpoint, read_trained
from jserve_tools.training import byte_model
from jserve_tools.training.byte_model import ByteModel, training_logits
from jserve_tools.training.config import ByteModelConfig
from jserve_tools.training.library_text import library_files, read_text
from tests.models.conftest import PagedRun

SMALL = dataclasses.replace(
    NAMED["tiny"], hidden_size=16, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8
)
SHORT = ByteModelConfig(
    num_steps=6,
    num_long_steps=0,
    batch_tokens=64,
    window_tokens=16,
    long_window_tokens=32,
    chat_share=0.5,
)


@pytest.fixture(autouse=True, scope="module")
def compiles_quickly(quick_compiler):
    """All programs of these tests."""


@pytest.fixture(scope="module")
def text():
    return read_text(library_files(is_held_out=True)[:12])


def weights_of(leaves: Sequence[Any], config=NAMED["tiny"]) -> DecoderWeights:
    graph, state = nnx.split(
        nnx.eval_shape(lambda: DecoderWeights(config, jnp.float32))
    )
    return nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), leaves))


def test_training_computes_what_is_served():
    config = dataclasses.replace(
        SMALL, qk_norm=True, qkv_bias=True, attention_scale=0.7, tie_embeddings=True
    )
    structure = Decoder(config)
    drawn = draw_weights(structure.leaves, 1, "float32")
    leaves = [leaf + 0.1 for leaf in drawn]  # biases are drawn as zeros
    tokens = np.random.default_rng(0).integers(0, 256, 150).tolist()
    mesh = make_mesh()
    pairs = zip(structure.leaves, leaves, strict=True)
    model = decoder_model(structure, [leaf.place(host, mesh) for leaf, host in pairs])
    run = PagedRun(model)
    served = run.prefill(StepShape(0, 5, 32), "a", tokens)
    logits = jax.jit(
        lambda leaves: training_logits(
            weights_of(leaves, config), config, jnp.array([tokens])
        )
    )(leaves)
    np.testing.assert_allclose(logits[0, -1], served, rtol=0, atol=1e-4)


def read(folder: pathlib.Path, leaves: Any, dtype: Any) -> list[Any]:
    found = read_trained(folder, leaves, dtype)
    pairs = zip(found, leaves, strict=True)
    return [
        np.stack([*one]) if leaf.axes[0] == "layers" else one for one, leaf in pairs
    ]


def same(one: object, other: object) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def test_losses_fall_and_are_judged_on_the_way(text, monkeypatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(byte_model, "_JUDGE_EVERY", 4)
    quick = optax.adam(0.01)  # Muon compiles for seconds
    monkeypatch.setattr(optax.contrib, "muon", lambda *_, **__: quick)
    state, curve = ByteModel(SMALL, SHORT, text).run(text, steps.append)
    assert steps == [1, 2, 3, 4, 5, 6] and int(state.step) == 6
    assert [row["step"] for row in curve] == [4, 6]
    assert curve[-1]["train"] < curve[0]["train"] - 0.1


def test_the_last_windows_are_long(text) -> None:
    config = dataclasses.replace(SHORT, num_long_steps=1)
    model = ByteModel(SMALL, config, text)
    assert [model.windows(step).shape for step in (4, 5)] == [(4, 17), (2, 33)]
    assert (model.windows(4) == ByteModel(SMALL, SHORT, text).windows(4)).all()
    assert (model.windows(4) != model.windows(3)).any()


def test_a_saved_model_is_read_as_it_was(text, tmp_path: pathlib.Path) -> None:
    model = ByteModel(SMALL, SHORT, text)
    leaves = byte_model.halved(model.start().leaves)
    model.save(tmp_path / "checkpoint", leaves)
    structure = Decoder(SMALL)
    found = read(tmp_path / "checkpoint", structure.leaves, jnp.bfloat16)
    assert same(found, leaves)
    other = Decoder(dataclasses.replace(SMALL, hidden_size=24))
    with pytest.raises(ValueError, match=r"embedding has shape \(320, 16\)"):
        read(tmp_path / "checkpoint", other.leaves, jnp.bfloat16)


def test_documents_and_chats_have_their_control_tokens(text) -> None:
    bos, eos, _, user, assistant, end = BYTE_CONTROL_TOKENS.values()
    sources, chats = text.sources.tokens, text.chats.tokens
    assert (sources[0], sources[-1]) == (bos, eos)
    assert sources.max() < user
    lines = sources[text.sources.starts - 1]
    assert set(lines.tolist()) == {eos, ord("\n")}
    turn = chats[: np.flatnonzero(chats == end)[1] + 1].tolist()
    assert (turn[0], turn[1], turn.count(assistant)) == (bos, user, 1)
    assert all(chats[text.chats.starts] == bos)
    assert ByteTokenizer().decode(turn).isprintable()


def test_held_out_files_are_not_trained_on() -> None:
    parts = [set(library_files(is_held_out=one)) for one in (False, True)]
    assert not parts[0] & parts[1]
    assert 0.02 < len(parts[1]) / len(parts[0]) < 0.1
    names = {path.name for path in parts[0] | parts[1]}
    assert "dataclasses.py" in names and "test_support.py" not in names
    assert not any(name.startswith("_sysconfigdata") for name in names)


def test_the_packaged_model_knows_python_and_random_weights_do_not() -> None:
    text = '''\
class Inventory:
    """Counts the things in a room."""

    def __init__(self, name, items=None):
        self.name = name
        self.items = dict(items or {})

    def add(self, item, count=1):
        if count < 0:
            raise ValueError("count must not be negative")
        self.items[item] = self.items.get(item, 0) + count
        return self
'''
    windows = jnp.array([list(text.encode())])
    bits = jax.jit(
        lambda leaves: (
            optax.softmax_cross_entropy_with_integer_labels(
                training_logits(weights_of(leaves), NAMED["tiny"], windows[:, :-1]),
                windows[:, 1:],
            ).mean()
            / np.log(2)
        )
    )
    leaves = Decoder(NAMED["tiny"]).leaves
    packaged = packaged_checkpoint("tiny")
    assert packaged is not None
    trained = read(packaged, leaves, jnp.float32)
    drawn = list(draw_weights(leaves, 0, jnp.float32))
    assert bits(trained) < 2.2
    assert bits(drawn) > 8.0
