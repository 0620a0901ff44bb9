"""Logits of checkpoints written by transformers, chunked, paged and batched."""

import collections
import json

import numpy as np
import pytest

from jserve_models.hf_config import FAMILIES
from jserve_models.registry import load_model
from jserve_models.steps import StepShape
from tests import TESTS

GOLDEN = TESTS / "golden"
FOLDERS = sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz"))
SHAPE = StepShape(5, 7, 32)


def read_golden(folder):
    with np.load(folder / "golden.npz") as arrays:
        count = sum(name.startswith("tokens_") for name in arrays)
        return [
            tuple(arrays[f"{part}_{i}"] for part in ("tokens", "positions", "logits"))
            for i in range(count)
        ]


def take_pieces(waiting, piece, shape):
    """Gives each sequence's next piece rows of its kind, oldest sequence first.

    A piece of one token is a decode if a decode row is free; a longer one takes as
    many blocks as it needs.
    """
    rows = collections.deque(range(shape.num_rows))
    blocks = collections.deque(range(shape.num_rows, shape.num_rows + shape.num_blocks))
    taken = []
    for _ in range(len(waiting)):
        name, tokens, edges = waiting.popleft()
        start, stop = edges[0], edges[1]
        num_blocks = -(-(stop - start) // shape.block_tokens)
        if stop - start == 1 and rows:
            used = [rows.popleft()]
        elif len(blocks) >= num_blocks:
            used = [blocks.popleft() for _ in range(num_blocks)]
        else:
            waiting.append((name, tokens, edges))
            continue
        taken.append((piece(name, start, tokens[start:stop], used), used[-1]))
        if len(edges) > 2:
            waiting.append((name, tokens, edges[1:]))
    return taken


def test_every_family_has_a_golden_folder():
    configs = [
        json.loads((GOLDEN / name / "config.json").read_text()) for name in FOLDERS
    ]
    found = {name for config in configs for name in config["architectures"]}
    assert found == set(FAMILIES)


@pytest.mark.parametrize("folder", FOLDERS)
def test_logits_equal_transformers(folder, paged_run, piece):
    golden = read_golden(GOLDEN / folder)
    model = load_model(str(GOLDEN / folder), seed=0, dtype="float32")
    run = paged_run(model, page_size=64, max_pages=4)
    # Logits come from a row's last token: cut each prompt after each kept position.
    waiting = collections.deque(
        (str(index), tokens, [0, *(positions + 1)])
        for index, (tokens, positions, _) in enumerate(golden)
    )
    found: dict[str, dict[int, np.ndarray]] = collections.defaultdict(dict)
    most_mixed = 0
    while waiting:
        taken = take_pieces(waiting, piece, SHAPE)
        logits = run.step(SHAPE, [part for part, _ in taken])
        kinds = {row < SHAPE.num_rows for _, row in taken}
        most_mixed = max(most_mixed, len(taken) * (len(kinds) == 2))
        for part, row in taken:
            stop = part.start + len(part.tokens)
            found[part.sequence][stop - 1] = logits[row]
    assert most_mixed >= 5  # decodes and blocks of several sequences in one step
    for index, (_, positions, wanted) in enumerate(golden):
        got = np.stack([found[str(index)][position] for position in positions])
        assert np.abs(wanted).max() > 1.0
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
        assert (got.argmax(axis=-1) == wanted.argmax(axis=-1)).all()
