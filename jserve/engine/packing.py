"""A step's arguments: flat int32 arrays, written on the host, cut on the device.

One NumPy array costs 5 us to hand over where six cost 15, so everything that changes
from step to step travels in one for the step itself (`B` decode rows, `NB` blocks of
`Q` tokens, `R = B + NB` rows, `T = B + NB * Q` tokens):

    T tokens           FROM_DEVICE takes the slot's last sampled token
    slots              rows that sample, in plan order; R pads. A request samples at
                       most once a step, so there are no more than slots
    R * 5              per row: start, length, slot, and a change of the slot's page
                       table: which entry, and the page that it has from now on

and in another for the head, of those rows that sample: how each draws its token.

Page tables stay on the device, since one of a long context is larger than all the rest.
What is new to a slot is spread over its rows; if it does not fit there, as when a
request comes into a slot with a shared prefix, the whole table is replaced before the
step. What the head needs to know of a slot is kept here, and gathered: a step looks
only at decode rows for which there is more to know than where they are.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jserve.engine.sampling import (
    IN_PROMPT,
    MAX_COUNT,
    RowSampling,
    SlotSampling,
    empty_slots,
)
from jserve_models.steps import StepInputs
from jserve_sched.buckets.table import Bucket
from jserve_sched.requests.request import MAX_STOP_TOKENS, Request
from jserve_sched.steps.features import Span
from jserve_sched.steps.plan import Row, StepPlan

Array = TypeVar("Array", np.ndarray, jax.Array)
FROM_DEVICE = -1
NO_TOKEN = -1

# Of a row of the step.
_START, _LEN, _SLOT, _ENTRY, _PAGE, _NUM_COLUMNS = range(6)
# Of a row of the head; its slot comes first, and all but two belong to the slot.
_POSITION, _BANS_STOPS, _TOP_K, _SEED = range(1, 5)
_IS_ADJUSTED, _IS_ONLY_BIASED, _LOGPROBS, _IS_MASKED = range(5, 9)
_FLOATS = slice(9, 15)
_FLOAT_FIELDS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)
_STOPS = slice(15, 15 + MAX_STOP_TOKENS)  # token ids; NO_TOKEN fills up
HEAD_COLUMNS = _STOPS.stop


class Packed(NamedTuple):
    """The arguments of a step.

    Attributes:
      step: [packed_size] argument of the step.
      head: [num_slots, HEAD_COLUMNS] argument of the head; rows that do not sample are
        padding.
      num_sampled: Number of rows that sample, which come first in `head`.
      is_drawn: Whether one of them needs more than the maximum of its logits.
      tables: Slots whose page table is replaced before the step, and the tables, `[M]`.
      samplers: Slots whose sampler's state is replaced before the step, and the states.
      has_logprobs: Whether log-probabilities of a row are wanted.
      waits: Whether the head waits for masks, since a row has a constraint.
      masks: [num_slots, words] int32, which tokens each row of the head may draw; None
        if no row has a constraint, or they are not known yet.
    """

    step: np.ndarray
    head: np.ndarray
    num_sampled: int
    is_drawn: bool
    tables: list[tuple[np.ndarray, np.ndarray]]
    samplers: list[tuple[np.ndarray, SlotSampling]]
    has_logprobs: bool = False
    waits: bool = False
    masks: np.ndarray | None = None


def packed_size(bucket: Bucket, num_slots: int) -> int:
    """Returns the length of the step's argument for `bucket`."""
    num_all_rows = bucket.num_rows + bucket.num_blocks
    return bucket.num_tokens + num_slots + num_all_rows * _NUM_COLUMNS


def padded_tables(num_slots: int, max_pages_per_row: int, num_pages: int) -> np.ndarray:
    """Returns empty page tables, `[slots + 1, M]`; the last one is of padding rows."""
    return np.full((num_slots + 1, max_pages_per_row), num_pages, np.int32)


def _cut(packed: Array, bucket: Bucket, num_slots: int) -> tuple[Array, Array, Array]:
    """Returns the argument's tokens, logit rows and rows."""
    num_all_rows = bucket.num_rows + bucket.num_blocks
    rows_start = bucket.num_tokens + num_slots
    tokens = packed[: bucket.num_tokens]
    logit_rows = packed[bucket.num_tokens : rows_start]
    return tokens, logit_rows, packed[rows_start:].reshape(num_all_rows, -1)


def unpack_step(
    packed: jax.Array, tables: jax.Array, slot_tokens: jax.Array, bucket: Bucket
) -> tuple[StepInputs, jax.Array]:
    """Returns the parts of the step's argument, and the changed page tables; traced.

    Args:
      packed: `[packed_size]` int32.
      tables: `[num_slots + 1, M]` int32, the page table of each slot.
      slot_tokens: `[num_slots]` int32, the token each slot sampled last.
    """
    tokens, logit_rows, rows = _cut(packed, bucket, slot_tokens.shape[0])
    tables = tables.at[rows[:, _SLOT], rows[:, _ENTRY]].set(rows[:, _PAGE], mode="drop")
    decodes = tokens[: bucket.num_rows]
    slots = rows[: bucket.num_rows, _SLOT]
    last = slot_tokens.at[slots].get(mode="fill", fill_value=0)
    tokens = tokens.at[: bucket.num_rows].set(
        jnp.where(decodes == FROM_DEVICE, last, decodes)
    )
    start, length, pages = rows[:, _START], rows[:, _LEN], tables[rows[:, _SLOT]]
    return StepInputs(tokens, start, length, pages, logit_rows), tables


def unpack_head(packed: jax.Array) -> RowSampling:
    """Returns how rows draw; traced.

    Args:
      packed: `[S, HEAD_COLUMNS]` int32.
    """
    floats = jax.lax.bitcast_convert_type(packed[:, _FLOATS], jnp.float32)
    return RowSampling(
        **{name: floats[:, place] for place, name in enumerate(_FLOAT_FIELDS)},
        top_k=packed[:, _TOP_K],
        seed=jax.lax.bitcast_convert_type(packed[:, _SEED], jnp.uint32),
        position=packed[:, _POSITION],
        banned=jnp.where(packed[:, _BANS_STOPS, None] > 0, packed[:, _STOPS], NO_TOKEN),
        slot=packed[:, 0],
        is_adjusted=packed[:, _IS_ADJUSTED] > 0,
        is_only_biased=packed[:, _IS_ONLY_BIASED] > 0,
        wants_logprobs=packed[:, _LOGPROBS] > 0,
        is_masked=packed[:, _IS_MASKED] > 0,
    )


class Packer:
    """Writes the arguments of each step."""

    def __init__(
        self,
        *,
        num_slots: int,
        num_pages: int,
        page_size: int,
        max_pages_per_row: int,
        vocab_size: int,
    ):
        self._max_pages_per_row = max_pages_per_row
        self._num_slots = num_slots
        self._num_pages = num_pages
        self._page_size = page_size
        self._vocab_size = vocab_size
        # The last row stands for padding: greedy, for no slot.
        self._samplings = np.zeros((num_slots + 1, HEAD_COLUMNS), np.int32)
        self._samplings[:, 0] = np.arange(num_slots + 1)
        self._is_drawn = np.zeros(num_slots + 1, bool)
        self._owner: list[tuple[Request, int] | None] = [None] * num_slots
        self._num_written = [0] * num_slots
        # Where a decode row begins if its token is the slot's last one on the device.
        self._next_start = np.full(num_slots, -1)
        self._ban_stop = np.zeros(num_slots + 1, np.int64)  # stops are banned before it
        self._is_unsent = np.zeros(num_slots + 1, bool)  # what adjusts a slot's logits

    def _new(self, bucket: Bucket) -> np.ndarray:
        """Returns an argument of padding."""
        packed = np.zeros(packed_size(bucket, self._num_slots), np.int32)
        _, logit_rows, rows = _cut(packed, bucket, self._num_slots)
        logit_rows[:] = len(rows)
        rows[:, _SLOT] = self._num_slots
        rows[:, _ENTRY] = self._max_pages_per_row  # which there is not
        return packed

    def pack(self, plan: StepPlan) -> Packed:
        """Returns the arguments; the sampled tokens come out in plan order."""
        bucket = plan.bucket
        num_rows, size = bucket.num_rows, bucket.block_tokens
        packed = self._new(bucket)
        tokens, logit_rows, rows = _cut(packed, bucket, self._num_slots)
        tables: list[tuple[np.ndarray, np.ndarray]] = []
        # Decode rows: one token each.
        num_decodes = len(plan.decodes)
        sampling = list(range(num_decodes))
        slots = np.array([row.request.slot for row in plan.decodes], np.int64)
        begin = np.array([row.start for row in plan.decodes], np.int64)
        rows[:num_decodes, _SLOT], rows[:num_decodes, _START] = slots, begin
        rows[:num_decodes, _LEN] = 1
        tokens[:num_decodes] = FROM_DEVICE
        is_new = self._next_start[slots] != begin
        needs_page = begin % self._page_size == 0
        for index in np.flatnonzero(is_new | needs_page).tolist():
            row = plan.decodes[index]
            tables += self._sync_slot(row.request, rows[index : index + 1])
            if row.start < row.request.num_known_tokens:
                tokens[index] = row.request.known_tokens(row.start, row.stop)[0]
        self._next_start[slots] = begin + 1
        # Prefill blocks: a chunk takes one or several.
        index, first = num_rows, num_rows
        for row in plan.chunks:
            tokens[first : first + row.num_tokens] = row.request.known_tokens(
                row.start, row.stop
            )
            starts = np.arange(row.start, row.stop, size)
            blocks = rows[index : index + len(starts)]
            blocks[:, _SLOT], blocks[:, _START] = row.request.slot, starts
            blocks[:, _LEN] = np.minimum(size, row.stop - starts)
            tables += self._sync_slot(row.request, blocks)
            index += len(starts)
            first += len(starts) * size
            if row.draws_token:
                sampling.append(index - 1)
        logit_rows[: len(sampling)] = sampling
        # The head.
        drawing = np.full(self._num_slots, self._num_slots)
        drawing[: len(sampling)] = rows[sampling, _SLOT]
        stops = np.zeros(self._num_slots, np.int64)
        stops[: len(sampling)] = rows[sampling, _START] + rows[sampling, _LEN]
        is_banned = stops < self._ban_stop[drawing]
        head = self._samplings[drawing]
        head[:, _POSITION] = stops
        head[:, _BANS_STOPS] = is_banned
        is_drawn = bool(np.any(is_banned | self._is_drawn[drawing]))
        samplers = [
            (np.array(row.request.slot, np.int32), self._sampler(row))
            for row in (plan.drawing_rows if self._is_unsent[drawing].any() else ())
            if self._is_unsent[row.request.slot]
        ]
        self._is_unsent[drawing] = False
        has_logprobs = bool(head[:, _LOGPROBS].any())
        waits = bool(head[:, _IS_MASKED].any())
        return Packed(
            packed,
            head,
            len(sampling),
            is_drawn,
            tables,
            samplers,
            has_logprobs,
            waits,
        )

    def pack_synthetic(
        self,
        bucket: Bucket,
        decodes: Sequence[Span],
        chunks: Sequence[Span],
        *,
        is_drawn: bool,
    ) -> tuple[Packed, np.ndarray]:
        """Returns the arguments of a step of made-up rows.

        For warm-up and timing, beside requests that are served: as many tokens as
        decode rows are sampled, into no slot. Rows read made-up pages up to the one on
        which they begin; from there on theirs is the discard page, since they write.

        Args:
          chunks: Chunks of whole blocks, which begin at the same position.

        Returns:
          Arguments, and the page tables to run them with, which are for one step.
        """
        packed = self._new(bucket)
        *_, rows = _cut(packed, bucket, self._num_slots)
        tables = padded_tables(
            self._num_slots, self._max_pages_per_row, self._num_pages
        )
        made_up = np.arange(tables.size).reshape(tables.shape) % self._num_pages
        tables[:-1] = made_up[:-1]
        some = rows[: len(decodes)]
        some[:, _SLOT] = np.arange(len(some)) % self._num_slots
        some[:, _START] = [one.start for one in decodes]
        some[:, _LEN] = 1
        some[:, _ENTRY] = some[:, _START] // self._page_size
        some[:, _PAGE] = self._num_pages
        # Blocks take the table of padding rows, which no decode reads.
        size, index = bucket.block_tokens, bucket.num_rows
        for start, num_tokens in chunks:
            first = start // self._page_size
            tables[-1, :first] = made_up[-1, :first]
            starts = np.arange(start, start + num_tokens, size)
            some = rows[index : index + len(starts)]
            some[:, _START], some[:, _LEN] = starts, size
            index += len(starts)
        head = np.repeat(self._samplings[-1:], self._num_slots, axis=0)
        return Packed(packed, head, bucket.num_rows, is_drawn, [], []), tables

    def _sync_slot(
        self, request: Request, rows: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Writes what is new of a slot's page table into its rows, if it fits there.

        Returns:
          Slot and table, if it has to be replaced.
        """
        slot = request.slot
        assert slot is not None
        num_pages, num_written = len(request.pages), self._num_written[slot]
        self._num_written[slot] = num_pages
        # The object, not its id: a client may use an id again.
        owner = (request, request.num_preemptions)
        is_new = self._owner[slot] != owner
        if is_new:
            self._owner[slot] = owner
            self._next_start[slot] = -1
            self._read_request(slot, request)
        changed = num_pages - num_written
        if is_new or changed > len(rows):
            table = np.full(self._max_pages_per_row, self._num_pages, np.int32)
            table[:num_pages] = request.pages
            return [(np.array(slot, np.int32), table)]
        rows[:changed, _ENTRY] = np.arange(num_written, num_pages)
        rows[:changed, _PAGE] = request.pages[num_written:]
        return []

    def _read_request(self, slot: int, request: Request) -> None:
        """Notes how the request of a slot draws its tokens."""
        row, sampling = self._samplings[slot], request.sampling
        self._ban_stop[slot] = request.num_prompt_tokens + request.min_tokens
        wants_logprobs = sampling.num_logprobs is not None
        self._is_unsent[slot] = sampling.is_adjusted
        self._is_drawn[slot] = (
            sampling.temperature > 0
            or sampling.is_adjusted
            or wants_logprobs
            or request.constraint is not None
        )
        floats = [getattr(sampling, name) for name in _FLOAT_FIELDS]
        row[_FLOATS] = np.array(floats, np.float32).view(np.int32)
        row[_TOP_K] = sampling.top_k
        row[_SEED] = np.uint32(sampling.seed).view(np.int32)
        row[_IS_ADJUSTED] = sampling.is_adjusted
        row[_IS_ONLY_BIASED] = sampling.only_biased
        row[_LOGPROBS] = wants_logprobs
        row[_IS_MASKED] = request.constraint is not None
        stops = sorted(request.stop_token_ids)
        row[_STOPS] = NO_TOKEN
        row[_STOPS][: len(stops)] = stops

    def _sampler(self, row: Row) -> SlotSampling:
        """Returns what adjusts the logits of a request, at the token that a row draws.

        All tokens before it are known: the row computes the last of them, or, on the
        first row of a slot, has come from the host.
        """
        request, how = row.request, row.request.sampling
        state = SlotSampling(*(one[0] for one in empty_slots(1, self._vocab_size)))
        outputs = request.known_tokens(request.num_prompt_tokens, row.stop)
        counts = np.bincount(outputs, minlength=self._vocab_size)
        state.counts[:] = np.minimum(counts, MAX_COUNT)
        state.counts[request.prompt_tokens] |= IN_PROMPT
        state.bias_tokens[: len(how.biases)] = [token for token, _ in how.biases]
        state.biases[: len(how.biases)] = [bias for _, bias in how.biases]
        for place, word in enumerate(how.bad_words):
            state.bad_words[place, -len(word) :] = word
        recent = outputs[-state.recent.size :]
        state.recent[state.recent.size - len(recent) :] = recent
        return state
