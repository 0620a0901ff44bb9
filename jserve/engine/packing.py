"""A step's arguments: flat int32 arrays, written on the host, cut on the device.

One NumPy array costs 5 us to hand over where six cost 15, so everything that changes
from step to step travels in one for the step itself (`B` decode rows, `NB` blocks of
`Q` tokens, `R = B + NB` rows, `T = B + NB * Q` tokens, `M` pages a row at most):

    T tokens           FROM_DEVICE takes the slot's last sampled token
    slots              rows that sample, in plan order; R pads. A request samples at
                       most once a step, so there are no more than slots
    R * (3 + M)        per row: start, length, slot, then its page table

and in another for the head, of those rows that sample: how each draws its token.

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

# Of a row of the step.
_START, _LEN, _SLOT, _NUM_COLUMNS = range(4)
# Of a row of the head; its slot comes first, and all but two belong to the slot.
_POSITION, _BANS_STOPS, _TEMPERATURE, _TOP_K, _TOP_P, _MIN_P, _SEED = range(1, 8)
_STOPS = slice(8, 8 + MAX_STOP_TOKENS)  # token ids; NO_TOKEN fills up
HEAD_COLUMNS = _STOPS.stop


class Packed(NamedTuple):
    """The arguments of a step.

    Attributes:
      step: [packed_size] argument of the step.
      head: [num_slots, HEAD_COLUMNS] argument of the head; rows that do not sample are
        padding.
      num_sampled: Number of rows that sample, which come first in `head`.
      is_drawn: Whether one of them needs more than the maximum of its logits.
    """

    step: np.ndarray
    head: np.ndarray
    num_sampled: int
    is_drawn: bool


def packed_size(bucket: Bucket, num_slots: int, max_pages_per_row: int) -> int:
    """Returns the length of the step's argument for `bucket`."""
    num_all_rows = bucket.num_rows + bucket.num_blocks
    row_size = _NUM_COLUMNS + max_pages_per_row
    return bucket.num_tokens + num_slots + num_all_rows * row_size


def _cut(packed: Array, bucket: Bucket, num_slots: int) -> tuple[Array, Array, Array]:
    """Returns the argument's tokens, logit rows and row table."""
    num_all_rows = bucket.num_rows + bucket.num_blocks
    table_start = bucket.num_tokens + num_slots
    tokens = packed[: bucket.num_tokens]
    logit_rows = packed[bucket.num_tokens : table_start]
    return tokens, logit_rows, packed[table_start:].reshape(num_all_rows, -1)


def unpack_step(
    packed: jax.Array, slot_tokens: jax.Array, bucket: Bucket
) -> StepInputs:
    """Returns the parts of the step's argument; traced.

    Args:
      packed: `[packed_size]` int32.
      slot_tokens: `[num_slots]` int32, the token each slot sampled last.
    """
    tokens, logit_rows, table = _cut(packed, bucket, slot_tokens.shape[0])
    decodes = tokens[: bucket.num_rows]
    slots = table[: bucket.num_rows, _SLOT]
    last = slot_tokens.at[slots].get(mode="fill", fill_value=0)
    tokens = tokens.at[: bucket.num_rows].set(
        jnp.where(decodes == FROM_DEVICE, last, decodes)
    )
    start, length = table[:, _START], table[:, _LEN]
    return StepInputs(tokens, start, length, table[:, _NUM_COLUMNS:], logit_rows)


def unpack_head(packed: jax.Array) -> tuple[RowSampling, jax.Array]:
    """Returns how rows draw, and the slot that remembers each token; traced.

    Args:
      packed: `[S, HEAD_COLUMNS]` int32.
    """

    def as_float(column: int) -> jax.Array:
        return jax.lax.bitcast_convert_type(packed[:, column], jnp.float32)

    sampling = RowSampling(
        temperature=as_float(_TEMPERATURE),
        top_k=packed[:, _TOP_K],
        top_p=as_float(_TOP_P),
        min_p=as_float(_MIN_P),
        seed=jax.lax.bitcast_convert_type(packed[:, _SEED], jnp.uint32),
        position=packed[:, _POSITION],
        banned=jnp.where(packed[:, _BANS_STOPS, None] > 0, packed[:, _STOPS], NO_TOKEN),
    )
    return sampling, packed[:, 0]


class Packer:
    """Writes the arguments of each step."""

    def __init__(
        self, *, num_slots: int, num_pages: int, page_size: int, max_pages_per_row: int
    ):
        self._max_pages_per_row = max_pages_per_row
        self._num_slots = num_slots
        self._num_pages = num_pages
        self._page_size = page_size
        width = _NUM_COLUMNS + max_pages_per_row
        # The last row stands for padding: no token, no pages, greedy, for no slot.
        self._tables = np.full((num_slots + 1, width), num_pages, np.int32)
        self._tables[:, :_SLOT] = 0
        self._tables[:, _SLOT] = np.arange(num_slots + 1)
        self._samplings = np.zeros((num_slots + 1, HEAD_COLUMNS), np.int32)
        self._samplings[:, 0] = np.arange(num_slots + 1)
        self._is_drawn = np.zeros(num_slots + 1, bool)
        self._owner: list[tuple[Request, int] | None] = [None] * num_slots
        self._num_written = [0] * num_slots
        # Where a decode row begins if its token is the slot's last one on the device.
        self._next_start = np.full(num_slots, -1)
        self._ban_stop = np.zeros(num_slots + 1, np.int64)  # stops are banned before it

    def _new(self, bucket: Bucket) -> np.ndarray:
        """Returns an argument of padding."""
        size = packed_size(bucket, self._num_slots, self._max_pages_per_row)
        packed = np.zeros(size, np.int32)
        _, logit_rows, table = _cut(packed, bucket, self._num_slots)
        logit_rows[:] = len(table)
        return packed

    def pack(self, plan: StepPlan) -> Packed:
        """Returns the arguments; the sampled tokens come out in plan order."""
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
        # The rows: what belongs to the slots, then what changes every step.
        table[:] = self._tables[slots]
        table[:, _START] = starts
        table[:, _LEN] = lengths
        logit_rows[: len(sampling)] = sampling
        # The head.
        wanted = np.full(self._num_slots, self._num_slots)
        wanted[: len(sampling)] = slots[sampling]
        stops = np.zeros(self._num_slots, np.int64)
        stops[: len(sampling)] = starts[sampling] + lengths[sampling]
        is_banned = stops < self._ban_stop[wanted]
        head = self._samplings[wanted]
        head[:, _POSITION] = stops
        head[:, _BANS_STOPS] = is_banned
        is_drawn = bool(np.any(is_banned | self._is_drawn[wanted]))
        return Packed(packed, head, len(sampling), is_drawn)

    def pack_synthetic(
        self, bucket: Bucket, decode_pages: int, block_pages: int, *, is_drawn: bool
    ) -> Packed:
        """Returns the arguments of a step whose rows all end on such a page.

        For warm-up and timing, beside requests that are served: 0 pages make padding
        rows; as many tokens as decode rows are sampled, into no slot. Rows read
        made-up pages, and what they would write goes to the discard page, since all of
        it lies on their last one.
        """
        packed = self._new(bucket)
        *_, table = _cut(packed, bucket, self._num_slots)
        num_rows, size = bucket.num_rows, bucket.block_tokens
        table[:] = self._tables[self._num_slots]
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
        head = np.repeat(self._samplings[-1:], self._num_slots, axis=0)
        return Packed(packed, head, num_rows, is_drawn)

    def _sync_slot(self, request: Request) -> int:
        """Brings the slot's stored row up to date; returns the slot."""
        slot = request.slot
        assert slot is not None
        table, row = self._tables[slot], self._samplings[slot]
        # The object, not its id: a client may use an id again.
        owner = (request, request.num_preemptions)
        if self._owner[slot] != owner:
            self._owner[slot] = owner
            self._num_written[slot] = 0
            self._next_start[slot] = -1
            self._ban_stop[slot] = request.num_prompt_tokens + request.min_tokens
            table[_NUM_COLUMNS:] = self._num_pages
            sampling = request.sampling
            self._is_drawn[slot] = sampling.temperature > 0
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
            table[start : _NUM_COLUMNS + num_pages] = request.pages[num_written:]
            self._num_written[slot] = num_pages
        return slot
