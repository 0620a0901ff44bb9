"""Logits of checkpoints written by transformers, chunked, paged and batched."""

import collections
import json
import re
import shutil

import numpy as np
import pytest
import safetensors.numpy

from jserve_models.attention import cpu, page_loop, tpu
from jserve_models.hf import FAMILIES
from jserve_models.registry import load_model
from jserve_models.steps import StepShape
from tests import ROOT, TESTS
from tests.golden.drawing import draw_tensors
from tests.ragged_attention import traceable_kernel

GOLDEN = TESTS / "golden"
FOLDERS = sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz"))
SHAPE = StepShape(5, 7, 32)
# In each run of the tests; the others are for `make test-families`.
ALWAYS = {"gemma2", "mixtral"}


def read_golden(folder):
    with np.load(folder / "golden.npz") as arrays:
        count = sum(name.startswith("tokens_") for name in arrays)
        return [
            tuple(arrays[f"{part}_{i}"] for part in ("tokens", "positions", "logits"))
            for i in range(count)
        ]


def checkpoint(name, tmp_path):
    """Returns a folder with a family's weights, which may have to be drawn."""
    folder = GOLDEN / name
    if (folder / "model.safetensors").exists():
        return folder
    shutil.copy(folder / "config.json", tmp_path)
    with np.load(folder / "golden.npz") as arrays:
        shapes = json.loads(str(arrays["shapes"]))
        tensors = draw_tensors(shapes, norm_mean=float(arrays["norm_mean"]))
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


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


def architectures():
    """Returns the checkpoints of each architecture."""
    found = collections.defaultdict(list)
    for name in FOLDERS:
        config = json.loads((GOLDEN / name / "config.json").read_text())
        found[config["architectures"][0]].append(name)
    return found


def test_every_family_has_a_golden_folder_and_a_row_in_the_readme():
    assert set(architectures()) == set(FAMILIES)
    text = (ROOT / "models" / "jserve_models" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+ForCausalLM)` \|.*\| ([a-z0-9_, ]+) \|$", text, re.M)
    assert {name: cells.split(", ") for name, cells in rows} == architectures()


def cases():
    for name in FOLDERS:
        is_stored = (GOLDEN / name / "model.safetensors").exists()
        marks = () if is_stored or name in ALWAYS else (pytest.mark.families,)
        yield pytest.param(name, cpu, id=name, marks=marks)
    # The TPU's has no sinks, and what stands for it here takes a while.
    others = [
        (one, page_loop) for one in ("gemma2", "gpt_oss", "mixtral", "phi3_short")
    ]
    for name, backend in (*others, ("gemma2", tpu)):
        kind = backend.__name__.rpartition(".")[2]
        yield pytest.param(
            name, backend, id=f"{name}-{kind}", marks=pytest.mark.families
        )


@pytest.mark.parametrize(("folder", "backend"), list(cases()))
def test_logits_equal_transformers(
    folder, backend, paged_run, piece, tmp_path, monkeypatch
):
    monkeypatch.setattr(tpu, "_kernel", traceable_kernel)
    golden = read_golden(GOLDEN / folder)
    path = str(checkpoint(folder, tmp_path))
    model = load_model(path, seed=0, dtype="float32", attention=backend)
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
    # Decodes and blocks of several sequences in one step.
    assert most_mixed >= 5 or len(golden) < 5
    for index, (_, positions, wanted) in enumerate(golden):
        got = np.stack([found[str(index)][position] for position in positions])
        assert np.abs(wanted).max() > 1.0
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
        assert (got.argmax(axis=-1) == wanted.argmax(axis=-1)).all()
    with np.load(GOLDEN / folder / "golden.npz") as arrays:
        greedy = arrays["greedy"].tolist() if "greedy" in arrays else []
    # What follows the first prompt.
    tokens, at = [int(golden[0][2][-1].argmax())], len(golden[0][0])
    for position in range(at, at + len(greedy) - 1):
        logits = run.step(SHAPE, [piece("0", position, tokens[-1:], [0])])
        tokens.append(int(logits[0].argmax()))
    assert not greedy or tokens == greedy
