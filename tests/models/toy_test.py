"""The toy model against arithmetic done by hand."""

import numpy as np

from jserve_models.registry import load_model
from jserve_models.steps import StepShape
from jserve_models.toy import toy_next_token

SHAPE = StepShape(num_rows=2, num_blocks=3, block_tokens=8)


def test_next_token_by_hand():
    assert toy_next_token([4]) == 1 * 5
    assert toy_next_token([4, 9]) == 1 * 5 + 2 * 10
    assert toy_next_token([4, 9, 199]) == (5 + 20 + 3 * 200) % 317
    assert toy_next_token([9, 4]) != toy_next_token([4, 9])


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
