from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve.engine import sampling
from jserve_sched.requests.request import MAX_LOGPROBS

pytestmark = pytest.mark.usefixtures("quick_compiler")
VOCAB = 50
COUNT = 4000  # rows of a crowd: each other size would be compiled separately
BANNED = (7, 11)
draw = jax.jit(sampling.scores)
argmax = jax.jit(sampling.argmax)


def rows(count: int = COUNT, **fields: Any) -> sampling.RowSampling:
    defaults: dict[str, tuple[Any, Any]] = {
        "temperature": (1.0, jnp.float32),
        "top_k": (0, jnp.int32),
        "top_p": (1.0, jnp.float32),
        "min_p": (0.0, jnp.float32),
        "seed": (0, jnp.uint32),
        "position": (np.arange(count), jnp.int32),
        "slot": (np.arange(count), jnp.int32),
        "is_adjusted": (False, bool),
        "is_only_biased": (False, bool),
        "repetition_penalty": (1.0, jnp.float32),
        "frequency_penalty": (0.0, jnp.float32),
        "presence_penalty": (0.0, jnp.float32),
        "wants_logprobs": (False, bool),
        "is_masked": (False, bool),
    }
    bans = np.broadcast_to(fields.get("bans", False), count)
    return sampling.RowSampling(
        banned=jnp.where(jnp.asarray(bans)[:, None], jnp.asarray([*BANNED, -1]), -1),
        **{
            name: jnp.broadcast_to(
                jnp.asarray(fields.get(name, value), dtype), (count,)
            )
            for name, (value, dtype) in defaults.items()
        },
    )


def tokens(logits: np.ndarray, how: sampling.RowSampling) -> np.ndarray:
    scores = draw(jnp.asarray(logits), how)
    drawn = np.asarray(argmax(scores))
    assert np.array_equal(drawn, np.argmax(np.asarray(scores), axis=-1))
    return drawn


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 2, VOCAB).astype(np.float32)


def crowd(logits: np.ndarray, count: int = COUNT) -> np.ndarray:
    return np.tile(logits, (count, 1))


def padded(*logits: float) -> np.ndarray:
    """A vocabulary of few tokens, and of others that cannot come."""
    return np.array([*logits, *[-1e9] * (VOCAB - len(logits))], np.float32)


def test_temperature_zero_is_greedy(logits: np.ndarray) -> None:
    drawn = tokens(crowd(logits), rows(temperature=0.0))
    assert set(drawn.tolist()) == {int(np.argmax(logits))}


def test_draws_follow_the_softmax(logits: np.ndarray) -> None:
    count = 5 * COUNT
    drawn = np.concatenate(
        [
            tokens(crowd(logits), rows(temperature=1.5, position=positions))
            for positions in np.arange(count).reshape(-1, COUNT)
        ]
    )
    expected = np.asarray(jax.nn.softmax(logits / 1.5))
    observed = np.bincount(drawn, minlength=VOCAB) / count
    # Five standard deviations of each binomial share.
    bound = 5 * np.sqrt(expected * (1 - expected) / count) + 1e-9
    assert np.all(np.abs(observed - expected) < bound)


@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_top_k_keeps_the_k_likeliest(logits: np.ndarray, top_k: int) -> None:
    drawn = tokens(crowd(logits), rows(top_k=top_k, temperature=3.0))
    assert set(drawn.tolist()) == set(np.argsort(-logits)[:top_k].tolist())


@pytest.mark.parametrize("top_p", [0.3, 0.8])
def test_top_p_keeps_the_smallest_set_with_that_mass(
    logits: np.ndarray, top_p: float
) -> None:
    drawn = tokens(crowd(logits), rows(top_p=top_p))
    probs = np.asarray(jax.nn.softmax(logits))
    order = np.argsort(-probs)
    size = int(np.searchsorted(np.cumsum(probs[order]), top_p)) + 1
    assert set(drawn.tolist()) <= set(order[:size].tolist())
    assert len(set(drawn.tolist())) >= size - 1  # the rarest may not have come up


def test_top_p_is_taken_of_what_top_k_left() -> None:
    logits = padded(*np.log([0.4, 0.3, 0.2, 0.1]))
    # Of the first two, 0.4 / 0.7 = 57 %: with top_p 0.5 the first is enough.
    how = rows(top_k=2, top_p=0.5)
    assert set(tokens(crowd(logits), how).tolist()) == {0}
    how = rows(top_k=2, top_p=0.6)
    assert set(tokens(crowd(logits), how).tolist()) == {0, 1}


def test_min_p_drops_what_is_unlikely_beside_the_best() -> None:
    logits = padded(*np.log([0.5, 0.3, 0.15, 0.05]))
    drawn = tokens(crowd(logits), rows(min_p=0.5))
    assert set(drawn.tolist()) == {0, 1}


def test_a_draw_depends_on_seed_and_position_alone(logits: np.ndarray) -> None:
    seeds, positions = np.resize([1, 2, 1, 1, 2, 9], COUNT), np.full(COUNT, 5)
    positions[3] = 6
    how = rows(seed=seeds, position=positions)
    drawn = np.asarray(draw(jnp.asarray(crowd(logits)), how))
    assert np.array_equal(drawn[0], drawn[2]) and np.array_equal(drawn[1], drawn[4])
    assert not np.array_equal(drawn[0], drawn[3])
    assert not np.array_equal(drawn[0], drawn[1])


def test_greedy_rows_are_untouched_beside_drawn_ones(logits: np.ndarray) -> None:
    is_greedy = np.arange(COUNT) % 2 == 0
    how = rows(temperature=np.where(is_greedy, 0.0, 1.0), top_p=0.5)
    drawn = np.asarray(draw(jnp.asarray(crowd(logits)), how))
    assert np.array_equal(drawn[is_greedy], crowd(logits, COUNT // 2))
    assert not np.any(np.all(drawn[~is_greedy] == logits, axis=-1))


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_banned_tokens_do_not_come(logits: np.ndarray, temperature: float) -> None:
    logits = logits.copy()
    logits[list(BANNED)] = 60.0  # so likely that no other token comes
    how = rows(temperature=temperature, bans=np.arange(COUNT) < 100)
    drawn = tokens(crowd(logits), how)
    assert not set(drawn[:100].tolist()) & set(BANNED)
    assert set(drawn[100:].tolist()) <= set(BANNED)


def test_argmax_takes_the_first_of_equals_and_survives_nan() -> None:
    values = jnp.array([[1.0, 5.0, 5.0], [-np.inf, -np.inf, -np.inf], [np.nan, 1, 2]])
    assert sampling.argmax(values).tolist()[:2] == [1, 0]
    assert 0 <= int(sampling.argmax(values)[2]) < 3


@pytest.mark.parametrize("is_gpu", [False, True], ids=["bits", "digits"])
def test_a_threshold_is_that_of_a_sort_and_takes_no_loop_on_a_gpu(is_gpu: bool) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(2**32, size=(16, VOCAB), dtype=np.uint32)
    keys[::2] = rng.choice(keys[0, :5], (8, VOCAB))  # ties
    keys[0, 0], keys[1, 0] = 0, 2**32 - 1
    weights = rng.integers(8, size=keys.shape).astype(np.float32)  # with exact sums
    totals = weights.sum(axis=1)
    targets = np.ceil(rng.random(16) * totals).astype(np.float32)
    targets[-3:] = 0, totals[-2], totals[-1] + 1
    arrays = keys, weights, targets
    for platform, has_loop in (("cuda", False), ("tpu", True), ("cpu", True)):
        traced = jax.jit(sampling._threshold).trace(*arrays)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.while" in text) == has_loop
    search = sampling._threshold_of_digits if is_gpu else sampling._threshold
    found = jax.jit(search)(*arrays)
    for row, weight, target, threshold in zip(
        keys, weights, targets, np.asarray(found).tolist(), strict=True
    ):
        order = np.argsort(row)[::-1]
        enough = np.flatnonzero(np.cumsum(weight[order]) >= target)
        expected = row[order][enough[0]] if len(enough) else 0
        assert threshold == (2**32 - 1 if target == 0 else expected)


def reference_logits(
    logits: np.ndarray,
    prompt: list[int],
    output: list[int],
    *,
    biases: dict[int, float],
    is_only_biased: bool,
    bad_words: list[list[int]],
    repetition: float,
    frequency: float,
    presence: float,
) -> np.ndarray:
    """One row's adjusted logits, by loops; forbidden tokens are -inf."""
    found = logits.astype(np.float64).copy()
    if is_only_biased:
        found[[token for token in range(VOCAB) if token not in biases]] = -np.inf
    for token, bias in biases.items():
        found[token] += bias
    for word in bad_words:
        before = word[:-1]
        if not before or output[-len(before) :] == before:
            found[word[-1]] = -np.inf
    for token in range(VOCAB):
        if token in prompt or token in output:
            found[token] *= 1 / repetition if found[token] > 0 else repetition
        num_times = output.count(token)
        found[token] -= frequency * num_times + presence * (num_times > 0)
    return found


def test_logits_are_adjusted_as_by_a_reference() -> None:
    rng = np.random.default_rng(0)
    count, num_slots = 6, 8
    logits = rng.normal(0, 2, (count, VOCAB)).astype(np.float32)
    slots = sampling.empty_slots(num_slots, VOCAB)
    row_slots = np.array([3, 0, 7, 1, 5, num_slots])
    is_adjusted = np.array([True, True, True, True, False, True])
    is_only_biased = np.array([False, False, True, False, False, False])
    repetition, frequency, presence = (
        rng.uniform(low, high, count).astype(np.float32)
        for low, high in ((1.1, 1.5), (-0.5, 1.0), (-0.5, 1.0))
    )
    expected = logits.astype(np.float64)
    for row, slot in enumerate(row_slots[:4]):
        prompt = rng.integers(VOCAB, size=5).tolist()
        output = rng.integers(10, size=6).tolist()
        biases = {
            int(token): float(token) / 8 - 2 for token in rng.integers(VOCAB, size=4)
        }
        words = [[7], [*output[-2:], 3], [output[-1], 4], [49, 5]]
        slots.counts[slot] = np.bincount(output, minlength=VOCAB)
        slots.counts[slot, prompt] |= sampling.IN_PROMPT
        slots.bias_tokens[slot, : len(biases)] = list(biases)
        slots.biases[slot, : len(biases)] = list(biases.values())
        for place, word in enumerate(words):
            slots.bad_words[slot, place, -len(word) :] = word
        slots.recent[slot, -len(output) :] = output
        expected[row] = reference_logits(
            logits[row],
            prompt,
            output,
            biases=biases,
            is_only_biased=bool(is_only_biased[row]),
            bad_words=words,
            repetition=float(repetition[row]),
            frequency=float(frequency[row]),
            presence=float(presence[row]),
        )
    how = rows(
        count,
        slot=row_slots,
        is_adjusted=is_adjusted,
        is_only_biased=is_only_biased,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
    )
    found = np.asarray(jax.jit(sampling.adjust)(logits, how, slots))
    is_open = np.isfinite(expected[:5])
    np.testing.assert_allclose(found[:5][is_open], expected[:5][is_open], rtol=1e-5)
    assert np.all(found[:5][~is_open] < -1e28)
    np.testing.assert_array_equal(found[4], logits[4])

    # What was drawn counts from then on, for adjusted rows alone, up to a limit.
    slots.counts[row_slots[0], 0] = sampling.MAX_COUNT | sampling.IN_PROMPT
    slots.counts[row_slots[1], 1] = sampling.MAX_COUNT - 1
    drawn = jnp.arange(count, dtype=jnp.int32)
    after = jax.jit(sampling.remember)(slots, how, drawn)
    more = np.asarray(after.counts).astype(int) - slots.counts
    assert {tuple(one) for one in np.argwhere(more).tolist()} == {
        (slot, token) for token, slot in enumerate(row_slots[:4]) if token
    }
    assert np.asarray(after.recent)[row_slots[:4], -1].tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(after.recent[5], slots.recent[5])


def test_masks_forbid_tokens_of_their_rows(logits: np.ndarray) -> None:
    may_come = np.random.default_rng(0).random((4, VOCAB)) < 0.3
    padding = np.ones((4, 32 * sampling.mask_words(VOCAB) - VOCAB), bool)
    bits = np.packbits(np.hstack([may_come, padding]), axis=1, bitorder="little")
    how = rows(4, is_masked=[True, False, True, True])
    found = np.asarray(
        jax.jit(sampling.apply_masks)(crowd(logits, 4), how, bits.view(np.int32))
    )
    may_come[1] = True
    np.testing.assert_array_equal(found[may_come], crowd(logits, 4)[may_come])
    # They decide before what else forbids a token, and before what is unlikely.
    assert np.all(found[~may_come] < -1.5e30)
    only = np.zeros((1, sampling.mask_words(VOCAB)), np.int32)
    only[0, 1] = 2  # the bit of token 33, which is banned
    how = rows(1, is_masked=True, temperature=0.6, top_k=20, top_p=0.95)
    how = how._replace(banned=jnp.full((1, 1), 33))
    one = sampling.apply_masks(jnp.array(crowd(logits, 1)), how, jnp.array(only))
    assert sampling.argmax(sampling.scores(one, how)).tolist() == [33]


@pytest.mark.parametrize("size", [VOCAB, 384, 4096])
def test_logprobs_are_those_of_the_model(size: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (4, size)).astype(np.float32)
    tokens = rng.integers(size, size=4).astype(np.int32)
    find = jax.jit(sampling.logprobs)
    found = find(logits, tokens, rows(4, wants_logprobs=[False, True, False, False]))
    expected = np.log(np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True))
    order = np.argsort(-expected, axis=-1)[:, :MAX_LOGPROBS]
    for row, token in enumerate(tokens):
        assert found.drawn[row] == pytest.approx(expected[row, token], abs=1e-4)
        assert found.rank[row] == np.sum(expected[row] >= expected[row, token])
    np.testing.assert_array_equal(found.top_tokens, order)
    np.testing.assert_allclose(
        found.top, np.take_along_axis(expected, order, axis=-1), atol=1e-4
    )
    assert not np.any(find(logits, tokens, rows(4)).drawn)
