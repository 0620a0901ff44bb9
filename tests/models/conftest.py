"""Drives a model step by step over a page pool, as an engine would."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from jserve_models.registry import LoadedModel
from jserve_models.steps import StepInputs, StepShape


@dataclasses.dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one sequence; `rows` are the step's rows they fill."""

    sequence: str
    start: int
    tokens: Sequence[int]
    rows: Sequence[int]


@functools.cache
def jitted_step(model: LoadedModel):
    """One per model, so that runs of the same model share their programs."""

    def step(leaves, kv, inputs, shape):
        hidden, kv = model.forward(leaves, kv, inputs, shape)
        return model.logits(model.head, hidden), kv

    return jax.jit(step, static_argnums=3, donate_argnums=1)


class PagedRun:
    """A pool whose pages are handed out in a shuffled order."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        num_pages: int = 40,
        page_size: int = 64,
        max_pages: int = 8,
        dtype: str = "float32",
    ):
        self.model = model
        self.num_pages, self.page_size = num_pages, page_size
        self.max_pages = max_pages
        self.kv = model.new_kv(num_pages, page_size, dtype)
        self.free = np.random.default_rng(0).permutation(num_pages).tolist()
        self.pages: dict[str, list[int]] = {}
        self._step = jitted_step(model)

    def inputs(self, shape: StepShape, pieces: Sequence[Piece]) -> StepInputs:
        num_rows, width = shape.num_rows, shape.block_tokens
        num_all = num_rows + shape.num_blocks
        tokens = np.zeros(num_rows + shape.num_blocks * width, np.int32)
        start = np.zeros(num_all, np.int32)
        length = np.zeros(num_all, np.int32)
        table = np.full((num_all, self.max_pages), self.num_pages, np.int32)
        for piece in pieces:
            stop = piece.start + len(piece.tokens)
            owned = self.pages.setdefault(piece.sequence, [])
            while len(owned) * self.page_size < stop:
                owned.append(self.free.pop())
            done = 0
            for row in piece.rows:
                is_decode = row < num_rows
                at = row if is_decode else num_rows + (row - num_rows) * width
                part = piece.tokens[done : done + (1 if is_decode else width)]
                tokens[at : at + len(part)] = part
                start[row], length[row] = piece.start + done, len(part)
                table[row, : len(owned)] = owned
                done += len(part)
            assert done == len(piece.tokens)
        wanted = np.arange(num_all, dtype=np.int32)
        arrays: list[Any] = [tokens, start, length, table, wanted]
        return StepInputs(*arrays)

    def step(self, shape: StepShape, pieces: Sequence[Piece]) -> np.ndarray:
        """Runs one step and returns the logits of every row."""
        inputs = self.inputs(shape, pieces)
        logits, self.kv = self._step(self.model.leaves, self.kv, inputs, shape)
        return np.array(logits)

    def prefill(
        self, shape: StepShape, sequence: str, tokens: Sequence[int], start: int = 0
    ) -> np.ndarray:
        """Computes all tokens alone, as many blocks a step as there are."""
        most = shape.num_blocks * shape.block_tokens
        for begin in range(0, len(tokens), most):
            part = tokens[begin : begin + most]
            used = -(-len(part) // shape.block_tokens)
            rows = range(shape.num_rows, shape.num_rows + used)
            piece = Piece(sequence, start + begin, part, rows)
            last = self.step(shape, [piece])[rows[-1]]
        return last


@pytest.fixture(autouse=True, scope="module")
def compiles_quickly(quick_compiler):
    """All programs of these tests."""


@pytest.fixture
def paged_run():
    return PagedRun


@pytest.fixture
def piece():
    return Piece
