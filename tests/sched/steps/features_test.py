import numpy as np
import pytest

from jserve_sched.buckets.table import Bucket
from jserve_sched.steps import features
from jserve_sched.steps.plan import Row
from tests.fakes import make_request


def row(start: int, num_tokens: int) -> Row:
    return Row(make_request(), start, num_tokens, draws_token=False)


def test_a_hand_made_batch() -> None:
    decodes = [row(100, 1), row(29, 1)]
    chunks = [row(0, 64), row(32, 10)]
    found = features.step_features(decodes, chunks, Bucket(4, 4, 32), page_size=16)
    assert found.tolist() == [
        64 * 64 + 10 * 42,  # x1 = sum c (u + c)
        64 * 64 + 10 * 10,  # x2 = sum c^2
        100 + 29 + 0 + 32,  # x3 = all cached tokens
        2,  # x4 = decodes
        129,  # x5 = decode context
        74,  # x6 = prefill tokens
        64,  # x7 = largest chunk
        *(4, 4),  # B, NB
        7 + 2,  # pages of 101 and 30 tokens
        2 + 4 + 4,  # pages of blocks that end after 32, 64 and (whole) 64 tokens
        7,  # pages of the longest decode
    ]
    bare = features.without_padding(found, 3)
    assert bare[features.NUM_ROWS] == 2 and bare[features.NUM_BLOCKS] == 3
    assert found[features.NUM_ROWS] == 4, "the original is untouched"


@pytest.mark.parametrize(("block", "page"), [(32, 128), (1, 16), (32, 16), (8, 8)])
def test_pages_of_blocks_are_counted_block_by_block(block: int, page: int) -> None:
    starts = np.arange(0, 40 * block, 4 * block)
    for tokens in (0, 1, block, 5 * block + block // 2, 60 * block):
        wanted = [
            sum(
                -(-min(begin + block, start + tokens) // page)
                for begin in range(start, start + tokens, block)
            )
            for start in starts.tolist()
        ]
        found = features.pages_of_blocks(starts, tokens, block, page)
        assert np.abs(found - wanted).max() <= block // page // 2, tokens


def test_scenarios_follow_equation_3() -> None:
    bucket = Bucket(4, 4, 32)
    matrix = np.stack(
        [
            features.step_features([row(9, 1)], [], bucket, 16),
            features.step_features([], [row(0, 9)], bucket, 16),
            features.step_features([row(9, 1)], [row(0, 9)], bucket, 16),
        ]
    )
    expected = [features.PURE_DECODE, features.PURE_PREFILL, features.MIXED]
    assert features.scenarios(matrix).tolist() == expected
