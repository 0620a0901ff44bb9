"""The step's one argument: a flat int32 array, written on the host, cut on the device.

One NumPy array costs 5 us to hand over where six cost 15, so everything that changes
from step to step travels in one (`B` decode rows, `NB` blocks of `Q` tokens,
`R = B + NB` rows, `T = B + NB * Q` tokens, `M` pages a row at most, `S` rows that
may sample: a request samples at most once a step, so there are no more than slots):

    T tokens           FROM_DEVICE takes the slot's last sampled token
    S logit rows       rows that sample, in plan order; R pads
    R * (17 + M)       per row: the columns below, then its page table

Per-slot parts (sampling, page table) are kept in arrays by slot and gathered, so a
step writes only what changed, and looks only at decode rows for which there is more to
know than where they are.
"""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jserve.engine.sampling import RowSampling
from jserve_models.steps import StepInputs
from jserve_sched.buckets.table import Bucket
from jserve_sched.requests.request import MAX_STOP_TOKENS, Request
from jserve_sched.steps.plan import StepPlan

Array = TypeVar("Array", np.ndarray, jax.Array)
FROM_DEVICE = -1
NO_TOKEN = -1

_START, _LEN, _SLOT, _BANS_STOPS = range(4)  # change every step
_TEMPERATURE, _TOP_K, _TOP_P, _MIN_P, _SEED = range(4, 9)  # belong to the slot
_STOPS = slice(9, 9 + MAX_STOP_TOKENS)  # token ids; NO_TOKEN fills up
_NUM_COLUMNS = _STOPS.stop


class Unpacked(NamedTuple):
    """The parts of the argument, on the device."""

    inputs: StepInputs
    sampling: RowSampling
    slot: jax.Array  # [S] slot that remembers the token; num_slots for none


def packed_size(bucket: Bucket, num_slots: int, max_pages_per_row: int) -> int:
    """Returns the length of the argument for `bucket`."""
    num_all_rows = bucket.num_rows + bucket.num_blocks
    num_logit_rows = min(num_all_rows, num_slots)
    row_size = _NUM_COLUMNS + max_pages_per_row
    return bucket.num_tokens + num_logit_rows + num_all_rows * row_size


def _cut(packed: Array, bucket: Bucket, num_slots: int) -> tuple[Array, Array, Array]:
    """Returns the argument's tokens, logit rows and row table."""
    num_all_rows = bucket.num_rows + bucket.num_blocks
    table_start = bucket.num_tokens + min(num_all_rows, num_slots)
    tokens = packed[: bucket.num_tokens]
    logit_rows = packed[bucket.num_tokens : table_start]
    return tokens, logit_rows, packed[table_start:].reshape(num_all_rows, -1)


def unpack(packed: jax.Array, slot_tokens: jax.Array, bucket: Bucket) -> Unpacked:
    """Splits the argument into its parts; traced.

    Args:
      packed: `[packed_size]` int32.
      slot_tokens: `[num_slots]` int32, the token each slot sampled last.
    """
    num_slots = slot_tokens.shape[0]
    tokens, logit_rows, table = _cut(packed, bucket, num_slots)
    decodes = tokens[: bucket.num_rows]
    slots = table[: bucket.num_rows, _SLOT]
    last = slot_tokens.at[slots].get(mode="fill", fill_value=0)
    tokens = tokens.at[: bucket.num_rows].set(
        jnp.where(decodes == FROM_DEVICE, last, decodes)
    )
    start, length = table[:, _START], table[:, _LEN]
    columns = table[:, :_NUM_COLUMNS]
    # A padding row is all zeros here: greedy, and remembered by no slot.
    wanted = columns.at[logit_rows].get(mode="fill", fill_value=0)
    is_padding = logit_rows >= len(table)

    def as_float(column: int) -> jax.Array:
        return jax.lax.bitcast_convert_type(wanted[:, column], jnp.float32)

    return Unpacked(
        StepInputs(tokens, start, length, table[:, _NUM_COLUMNS:], logit_rows),
        RowSampling(
            temperature=as_float(_TEMPERATURE),
            top_k=wanted[:, _TOP_K],
            top_p=as_float(_TOP_P),
            min_p=as_float(_MIN_P),
            seed=jax.lax.bitcast_convert_type(wanted[:, _SEED], jnp.uint32),
            position=wanted[:, _START] + wanted[:, _LEN],
            banned=jnp.where(
                wanted[:, _BANS_STOPS, None] > 0, wanted[:, _STOPS], NO_TOKEN
            ),
        ),
        jnp.where(is_padding, num_slots, wanted[:, _SLOT]),
    )


class Packer:
    """Writes the argument of each step."""

    def __init__(
        self, *, num_slots: int, num_pages: int, page_size: int, max_pages_per_row: int
    ):
        self._max_pages_per_row = max_pages_per_row
        self._num_slots = num_slots
        self._num_pages = num_pages
        self._page_size = page_size
        width = _NUM_COLUMNS + max_pages_per_row
        # The last row stands for padding: no token, greedy, no pages.
        self._slots = np.zeros((num_slots + 1, width), np.int32)
        self._slots[:, _NUM_COLUMNS:] = num_pages
        self._slots[:, _SLOT] = num_slots
        self._owner: list[tuple[Request, int] | None] = [None] * num_slots
        self._num_written = [0] * num_slots
        # Where a decode row begins if its token is the slot's last one on the device.
        self._next_start = np.full(num_slots, -1)
        self._ban_stop = np.zeros(num_slots, np.int64)  # stops are banned before it

    def _new(self, bucket: Bucket) -> np.ndarray:
        """Returns an argument of padding."""
        size = packed_size(bucket, self._num_slots, self._max_pages_per_row)
        packed = np.zeros(size, np.int32)
        _, logit_rows, table = _cut(packed, bucket, self._num_slots)
        logit_rows[:] = len(table)
        return packed

    def pack(self, plan: StepPlan) -> np.ndarray:
        """Returns the argument; its sampled tokens come out in plan order."""
        bucket = plan.bucket
        num_rows, size = bucket.num_rows, bucket.block_tokens
        packed = self._new(bucket)
        tokens, logit_rows, table = _cut(packed, bucket, self._num_slots)
        slots = np.full(len(table), self._num_slots)
        starts, lengths = np.zeros((2, len(table)), np.int64)
        # Decode rows: one token each.
        num_decodes = len(plan.decodes)
        sampling = list(range(num_decodes))
        decoding = np.array([row.request.slot for row in plan.decodes], np.int64)
        begin = np.array([row.start for row in plan.decodes], np.int64)
        slots[:num_decodes], starts[:num_decodes] = decoding, begin
        lengths[:num_decodes] = 1
        tokens[:num_decodes] = FROM_DEVICE
        is_new = self._next_start[decoding] != begin
        needs_page = begin % self._page_size == 0
        for index in np.flatnonzero(is_new | needs_page).tolist():
            row = plan.decodes[index]
            self._sync_slot(row.request)
            if row.start < row.request.num_known_tokens:
                tokens[index] = row.request.known_tokens(row.start, row.stop)[0]
        self._next_start[decoding] = begin + 1
        # Prefill blocks: a chunk takes one or several.
        index, first = num_rows, num_rows
        for row in plan.chunks:
            slot = self._sync_slot(row.request)
            tokens[first : first + row.num_tokens] = row.request.known_tokens(
                row.start, row.stop
            )
            for start in range(row.start, row.stop, size):
                slots[index] = slot
                starts[index], lengths[index] = start, min(size, row.stop - start)
                index += 1
                first += size
            if row.draws_token:
                sampling.append(index - 1)
        # The table: what belongs to the slots, then what changes every step.
        table[:] = self._slots[slots]
        table[:, _START] = starts
        table[:, _LEN] = lengths
        samples = np.array(sampling, np.int64)
        wanted = slots[samples]
        stops = starts[samples] + lengths[samples]
        table[samples, _SLOT] = wanted
        table[samples, _BANS_STOPS] = stops < self._ban_stop[wanted]
        logit_rows[: len(samples)] = samples
        return packed

    def pack_synthetic(
        self, bucket: Bucket, decode_pages: int, block_pages: int
    ) -> np.ndarray:
        """Returns the argument of a step whose rows all end on such a page.

        For warm-up and timing, beside requests that are served: 0 pages make padding
        rows; nothing is sampled into a slot. Rows read made-up pages, and what they
        would write goes to the discard page, since all of it lies on their last one.
        """
        packed = self._new(bucket)
        *_, table = _cut(packed, bucket, self._num_slots)
        num_rows, size = bucket.num_rows, bucket.block_tokens
        table[:] = self._slots[self._num_slots]
        pages = np.arange(len(table) * self._max_pages_per_row) % self._num_pages
        table[:, _NUM_COLUMNS:] = pages.reshape(len(table), -1)
        parts = (
            (slice(num_rows), 1, decode_pages),
            (slice(num_rows, None), size, block_pages),
        )
        for rows, width, num_pages in parts:
            if num_pages:
                table[rows, _START] = num_pages * self._page_size - width
                table[rows, _LEN] = width
                table[rows, _NUM_COLUMNS + num_pages - 1] = self._num_pages
        return packed

    def _sync_slot(self, request: Request) -> int:
        """Brings the slot's stored row up to date; returns the slot."""
        slot = request.slot
        assert slot is not None
        row = self._slots[slot]
        # The object, not its id: a client may use an id again.
        owner = (request, request.num_preemptions)
        if self._owner[slot] != owner:
            self._owner[slot] = owner
            self._num_written[slot] = 0
            self._next_start[slot] = -1
            self._ban_stop[slot] = request.num_prompt_tokens + request.min_tokens
            row[_NUM_COLUMNS:] = self._num_pages
            sampling = request.sampling
            floats = np.array(
                [sampling.temperature, sampling.top_p, sampling.min_p], np.float32
            )
            row[[_TEMPERATURE, _TOP_P, _MIN_P]] = floats.view(np.int32)
            row[_TOP_K] = sampling.top_k
            row[_SEED] = np.uint32(sampling.seed).view(np.int32)
            stops = sorted(request.stop_token_ids)
            row[_STOPS] = NO_TOKEN
            row[_STOPS][: len(stops)] = stops
        num_pages, num_written = len(request.pages), self._num_written[slot]
        if num_pages > num_written:
            start = _NUM_COLUMNS + num_written
            row[start : _NUM_COLUMNS + num_pages] = request.pages[num_written:]
            self._num_written[slot] = num_pages
        return slot
