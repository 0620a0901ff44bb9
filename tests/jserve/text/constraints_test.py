import json

import numpy as np

from jserve.text.constraints import Constraints, fill_masks
from jserve.text.tokenizer import load_tokenizer


def test_a_constraint_may_wait_until_the_reasoning_has_ended() -> None:
    tokenizer = load_tokenizer(None)
    vocab_size = 320
    made = Constraints(tokenizer, vocab_size).make("json", {"const": {"a": 1}})
    one = made.copy(tokenizer.token_bytes)
    masks = np.zeros((1, vocab_size // 32), np.int32)

    def num_allowed() -> int:
        fill_masks([(0, one)], masks)
        return int(np.bitwise_count(masks.view(np.uint32)).sum())

    for token in tokenizer.encode_part("{is it 1?</think"):
        one.accept(token)
        assert num_allowed() == vocab_size
    one.accept(*tokenizer.encode_part(">"))
    assert 0 < num_allowed() < 10
    for token in tokenizer.encode_part(json.dumps({"a": 1})):
        one.accept(token)
    assert not one.error and one.matcher.is_accepting()
    assert not made.is_waiting
