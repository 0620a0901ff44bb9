"""PlanBuilder: puts rows into a step without breaking a limit.

Policies say *who* comes next; the builder says whether it still fits: rows and
blocks of the bucket table, the step's token limit, slots, and KV pages. A plan it
builds is full, or names the limit that kept the next block out.

Pages, from the point of view of one plan:

    free        available now, less what this plan takes
    committed   still owed to prompts that are partly prefilled; a new request is
                admitted only if its whole prompt fits beside them, so two half
                prefilled prompts never wait for each other's pages
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jserve_sched import features
from jserve_sched.plan import PlanEnd, Row, StepPlan
from jserve_sched.request import Request, RequestState
from jserve_sched.view import SchedulerView

_WATERMARK_PAGES = 1  # left free at admission, so that a decode can grow


class PlanBuilder:
    """One plan in the making.

    Attributes:
      ended_by: Why the last prefill was cut short or refused; NO_WORK so far.
      used_blocks: Prefill blocks that hold a token so far.
    """

    def __init__(self, view: SchedulerView):
        self._view = view
        self._limit_blocks: int | None = None
        self._limit_end = PlanEnd.TOKEN_LIMIT
        self._page_size = view.ledger.page_size
        self._decodes: list[Row] = []
        self._chunks: list[Row] = []
        self._preempted: list[Request] = []
        self._placed: set[str] = set()
        self.used_blocks = 0
        self._num_admitted = 0
        self._is_closed = False
        self._holds_back = False
        self._leaves_work = False
        self._free = view.ledger.num_available
        self._committed = sum(
            self._missing_pages(request, request.num_projected)
            for request in view.running
            if request.num_remaining > 1
        )
        self.ended_by = PlanEnd.NO_WORK

    @property
    def num_decodes(self) -> int:
        """Decodes placed so far."""
        return len(self._decodes)

    @property
    def is_admitting(self) -> bool:
        """Whether a waiting request may still be taken in."""
        return not self._is_closed

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been placed yet."""
        return not self._decodes and not self._chunks

    @property
    def _is_cut_short(self) -> bool:
        """Whether the last prompt placed has tokens left."""
        return bool(self._chunks) and not self._chunks[-1].samples

    def _missing_pages(self, request: Request, num_tokens: int) -> int:
        if num_tokens <= len(request.pages) * self._page_size:
            return 0
        return self._view.ledger.pages_for(num_tokens) - len(request.pages)

    def _max_blocks(self) -> int:
        """Returns the largest block edge the token limit allows beside the rows."""
        view = self._view
        edge = view.buckets.block_edge_beside(
            len(self._decodes), view.max_num_batched_tokens
        )
        return edge if self._limit_blocks is None else min(edge, self._limit_blocks)

    def limit_blocks(self, num_blocks: int, end: PlanEnd) -> None:
        """Lets the step have no more prefill blocks than the policy wants.

        Args:
          num_blocks: Blocks in all, those placed already included.
          end: Reason that the plan gives if blocks are left over for it.
        """
        self._limit_blocks = num_blocks
        self._limit_end = end

    def hold_back(self) -> None:
        """Tells that the policy offers fewer requests than could be admitted."""
        self._holds_back = True

    def limit_tokens(self, num_tokens: int) -> None:
        """Lets the step have no more tokens, the decodes placed already included.

        Args:
          num_tokens: Rounded down to whole blocks but at least one; 0 sets no limit.
        """
        if num_tokens > 0:
            room = (num_tokens - self.num_decodes) // self._view.buckets.block_tokens
            self.limit_blocks(max(room, 1), PlanEnd.TOKEN_LIMIT)

    def _preempt_for(self, num_pages: int, victims: Iterable[Request]) -> bool:
        """Takes pages back from `victims`, in order, until `num_pages` are free."""
        for victim in victims:
            if self._free >= num_pages:
                break
            if victim.request_id in self._placed or victim.slot is None:
                continue
            released = self._view.ledger.num_released_by(victim.pages)
            if not released:
                continue
            # Placed here means "not in this plan": a victim in flight is held back
            # now, so that it can be preempted when the next plan is made.
            self._placed.add(victim.request_id)
            if victim.num_in_flight:
                return False
            self._preempted.append(victim)
            self._free += released
            if victim.num_remaining > 1:
                self._committed -= self._missing_pages(victim, victim.num_projected)
        return self._free >= num_pages

    def add_decode(self, request: Request, victims: Iterable[Request] = ()) -> bool:
        """Adds a running request's next token; tells whether it fits.

        Victims are preempted for a page, in their order.
        """
        if request.request_id in self._placed:
            return False
        if len(self._decodes) >= self._view.buckets.max_rows:
            return False
        need = self._missing_pages(request, request.num_dispatched + 1)
        if need > self._free and not self._preempt_for(need, victims):
            return False
        self._free -= need
        self._placed.add(request.request_id)
        self._decodes.append(Row(request, request.num_dispatched, 1, samples=True))
        return True

    def add_decodes(
        self,
        requests: Sequence[Request],
        victims: Callable[[Request], Iterable[Request]],
    ) -> None:
        """Adds the next tokens of running requests, as `add_decode` does each.

        `victims` says whom to preempt for a request's page.
        """
        page_size, rows, placed = self._page_size, self._decodes, self._placed
        most = self._view.buckets.max_rows
        for request in requests:
            start, name = request.num_dispatched, request.request_id
            if start < len(request.pages) * page_size:  # as most: no new page
                if len(rows) < most and name not in placed:
                    placed.add(name)
                    rows.append(Row(request, start, 1, True))
            else:
                self.add_decode(request, victims(request))

    def add_prefill(self, request: Request, victims: Iterable[Request] = ()) -> bool:
        """Adds as much of a request's prefill as fits; tells whether more may fit.

        Args:
          request: Running and partly prefilled, or waiting.
          victims: Requests that a running one may preempt; a waiting one preempts none.

        Returns:
          False when no prefill of any request fits any more. A waiting request
          that cannot be admitted closes admission, so that no smaller one overtakes
          it, but running requests may still go on.
        """
        is_waiting = request.state is RequestState.WAITING
        if request.request_id in self._placed or (is_waiting and self._is_closed):
            return True
        room = self._max_blocks() - self.used_blocks
        if room <= 0:
            self.ended_by = self._why_no_room()
            self._leaves_work = True
            return False
        if not is_waiting:
            return self._continue(request, room, victims)
        self._is_closed = not self._admit(request, room)
        return True

    def _why_no_room(self) -> PlanEnd:
        if self.used_blocks == self._view.buckets.max_blocks:
            return PlanEnd.FULL
        limit = self._limit_blocks
        is_policy = limit is not None and self.used_blocks >= limit
        return self._limit_end if is_policy else PlanEnd.TOKEN_LIMIT

    def _continue(
        self, request: Request, room: int, victims: Iterable[Request]
    ) -> bool:
        ledger = self._view.ledger
        start = request.num_dispatched
        num_tokens = min(
            request.num_projected - start, room * self._view.buckets.block_tokens
        )
        need = self._missing_pages(request, start + num_tokens)
        if need > self._free and not self._preempt_for(need, victims):
            # What the free pages can hold, in whole blocks: pages hold whole blocks.
            self.ended_by = PlanEnd.PAGES
            pages = len(request.pages) + self._free
            num_tokens = min(num_tokens, pages * ledger.page_size - start)
            if num_tokens <= 0:
                return False
            need = self._missing_pages(request, start + num_tokens)
        self._free -= need
        self._committed -= need
        self._place_chunk(request, start, num_tokens)
        return True

    def _admit(self, request: Request, room: int) -> bool:
        ledger = self._view.ledger
        if self._num_admitted >= self._view.num_free_slots:
            self.ended_by = PlanEnd.ROWS
            return False
        # The last token is always computed, since its logits are wanted.
        num_reusable = (request.num_known - 1) // ledger.page_size
        shared = ledger.find_prefix(request.page_hashes[:num_reusable])
        start = len(shared) * ledger.page_size
        num_tokens = min(
            request.num_known - start, room * self._view.buckets.block_tokens
        )
        revived = ledger.num_evictable_among(shared)
        whole = ledger.pages_for(request.num_known) - len(shared)
        is_alone = not self._view.running and not self._num_admitted
        spare = self._free - self._committed - (0 if is_alone else _WATERMARK_PAGES)
        # Pages taken back in this plan may be among the shared ones, and counting
        # both would count them twice: admit when the next plan is made.
        if self._preempted or whole + revived > spare:
            self.ended_by = PlanEnd.PAGES
            return False
        need = ledger.pages_for(start + num_tokens) - len(shared)
        self._free -= need + revived
        self._committed += whole - need
        self._num_admitted += 1
        self._place_chunk(request, start, num_tokens)
        return True

    def _place_chunk(self, request: Request, start: int, num_tokens: int) -> None:
        self._placed.add(request.request_id)
        self.used_blocks += -(-num_tokens // self._view.buckets.block_tokens)
        is_last = start + num_tokens == request.num_projected
        self._chunks.append(Row(request, start, num_tokens, samples=is_last))

    def build(self) -> StepPlan | None:
        """Returns the plan; None if there is nothing to compute."""
        if self.is_empty:
            return None
        view = self._view
        bucket = view.buckets.fit(len(self._decodes), self.used_blocks)
        if bucket.num_blocks == self.used_blocks and self.used_blocks:
            self.ended_by = PlanEnd.FULL
        elif self.ended_by is PlanEnd.NO_WORK and self._is_cut_short:
            self.ended_by = self._why_no_room()
        elif self.ended_by is PlanEnd.NO_WORK and self._holds_back:
            self.ended_by = PlanEnd.HELD_BACK
        elif self.ended_by is PlanEnd.NO_WORK and len(view.waiting) > len(
            view.admissible
        ):
            self.ended_by = PlanEnd.ROWS
        row = features.step_features(
            self._decodes, self._chunks, bucket, self._page_size
        )
        return StepPlan(
            step_id=view.step_id,
            bucket=bucket,
            decodes=tuple(self._decodes),
            chunks=tuple(self._chunks),
            preempted=tuple(self._preempted),
            predicted_s=float(view.predictor.predict(row[None])[0]),
            features=row,
            ended_by=self.ended_by,
            leaves_work=self._leaves_work or self._is_cut_short,
        )


def plan_in_order(
    view: SchedulerView,
    key: Callable[[Request], Any],
    *,
    chunk_tokens: int,
    ranks_waiting: bool = True,
) -> StepPlan | None:
    """Plans all decodes first, then prefill blocks in order until nothing fits.

    Args:
      view: The snapshot.
      key: Order of requests, least first; of those that run the last is
        preempted first.
      chunk_tokens: Tokens in the step, decodes included, rounded down to whole blocks
        but at least one; 0 leaves it to the step's limit.
      ranks_waiting: Whether prompts that wait are ordered among those partly computed;
        otherwise they come after them, by arrival.
    """
    builder = PlanBuilder(view)
    running = sorted(view.running, key=key)
    prefills = [request for request in running if request.num_remaining > 1]
    prefills += view.admissible
    if ranks_waiting:
        prefills.sort(key=key)

    def behind(index: int) -> Iterator[Request]:
        return (running[i] for i in range(len(running) - 1, index, -1))

    rank = {}
    for index, request in enumerate(running):
        rank[request.request_id] = index
        if request.num_remaining == 1:
            builder.add_decode(request, behind(index))
    builder.limit_tokens(chunk_tokens)
    for request in prefills:
        if not builder.is_admitting and request.state is RequestState.WAITING:
            continue
        index = rank.get(request.request_id, len(running))
        if not builder.add_prefill(request, behind(index)):
            break
    return builder.build()
