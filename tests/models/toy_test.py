"""The toy model against arithmetic done by hand."""

import numpy as np

from jserve_models.registry import load_model
from jserve_models.steps import StepShape
from jserve_models.toy import MARGIN, TOY, toy_next_token

SHAPE = StepShape(num_rows=2, num_blocks=3, block_tokens=8)


def test_next_token_by_hand():
    assert toy_next_token([4]) == 1 * 5
    assert toy_next_token([4, 9]) == 1 * 5 + 2 * 10
    assert toy_next_token([4, 9, 199]) == (5 + 20 + 3 * 200) % 317
    assert toy_next_token([9, 4]) != toy_next_token([4, 9])


def test_generates_by_hand_over_pages_in_mixed_steps(paged_run, piece):
    model = load_model("toy", seed=0, dtype="bfloat16")
    run = paged_run(model, num_pages=60, page_size=16, max_pages=26, dtype="bfloat16")
    rng = np.random.default_rng(1)
    first = rng.integers(0, TOY.vocab_size, 370).tolist()  # past the 316 weights
    second = rng.integers(0, TOY.vocab_size, 5).tolist()
    logits = run.prefill(SHAPE, "first", first)
    assert np.array_equal(np.unique(logits), [0.0, MARGIN])
    first.append(int(logits.argmax()))
    assert first[-1] == toy_next_token(first[:-1])
    # The second prefills, a token in one block, beside the first's decode.
    for length in range(1, 6):
        logits = run.step(
            SHAPE,
            [
                piece("first", len(first) - 1, first[-1:], [1]),
                piece("second", length - 1, second[length - 1 : length], [3]),
            ],
        )
        first.append(int(logits[1].argmax()))
        assert first[-1] == toy_next_token(first[:-1])
        assert logits[3].argmax() == toy_next_token(second[:length])


def test_a_foreign_page_changes_the_answer(paged_run, piece):
    run = paged_run(load_model("toy", seed=0, dtype="float32"), page_size=8)
    rng = np.random.default_rng(2)
    mine, other = rng.integers(0, 256, (2, 20)).tolist()
    run.prefill(SHAPE, "other", other)
    run.prefill(SHAPE, "mine", mine)
    run.pages["mine"][1] = run.pages["other"][1]
    answer = int(run.step(SHAPE, [piece("mine", 20, [7], [0])])[0].argmax())
    assert answer == toy_next_token([*mine[:8], *other[8:16], *mine[16:], 7])
    assert answer != toy_next_token([*mine, 7])
