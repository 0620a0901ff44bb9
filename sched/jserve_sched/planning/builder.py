"""PlanBuilder: puts rows into a step without exceeding a limit.

A policy chooses the next request; the builder decides whether it still fits: rows and
blocks of the bucket table, the step's token limit, slots, and KV pages. A plan that it
builds is full, or names the limit that kept the next block out.

To one plan, pages are:

    free        available now, less what this plan takes
    committed   still owed to prompts that are partly prefilled; a new request is
                admitted only if its whole prompt fits beside them, so two half
                prefilled prompts never wait for each other's pages
"""

from collections.abc import Callable, Iterable, Sequence

from jserve_sched.planning.view import SchedulerView
from jserve_sched.requests.request import Request, RequestState
from jserve_sched.steps import features
from jserve_sched.steps.plan import PlanEnd, Row, StepPlan

_WATERMARK_PAGES = 1  # left free at admission, so that a decode can grow


class PlanBuilder:
    """One plan in the making.

    Attributes:
      ended_by: Reason for which the last prefill was cut short or refused.
      used_blocks: Prefill blocks that hold a token so far.
      is_admitting: Whether a waiting request may still be taken in.
    """

    def __init__(self, view: SchedulerView):
        self._view = view
        self._limit_blocks = view.buckets.max_blocks
        self._limit_end = PlanEnd.TOKEN_LIMIT
        self._page_size = view.ledger.page_size
        self._block_tokens = view.buckets.block_tokens
        self._decodes: list[Row] = []
        self._chunks: list[Row] = []
        self._preempted: list[Request] = []
        self._settled: set[str] = set()
        self._num_admitted = 0
        self._leaves_work = False
        self._free = view.ledger.num_available
        self._committed = sum(
            self._missing_pages(request, request.num_projected_tokens)
            for request in view.begun
        )
        self.used_blocks = 0
        self.is_admitting = True
        self.ended_by = PlanEnd.NO_WORK

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been placed yet."""
        return not self._decodes and not self._chunks

    def _missing_pages(self, request: Request, num_tokens: int) -> int:
        return max(self._view.ledger.pages_for(num_tokens) - len(request.pages), 0)

    def limit_time(self, num_blocks: int) -> None:
        """Limits the step to the prefill blocks for which a policy has time.

        A step without decodes may have one anyway, so that it has something to do.
        """
        self._limit_blocks = max(num_blocks, 0 if self._decodes else 1)
        self._limit_end = PlanEnd.TIME_LIMIT

    def limit_tokens(self, num_tokens: int) -> None:
        """Limits the step to `num_tokens`, including the decodes placed already.

        They are rounded down to whole blocks but at least one; 0 sets no limit.
        """
        if num_tokens > 0:
            room = (num_tokens - len(self._decodes)) // self._block_tokens
            self._limit_blocks = max(room, 1)
            self._limit_end = PlanEnd.TOKEN_LIMIT

    def _take_pages(self, num_pages: int, victims: Iterable[Request] = ()) -> bool:
        """Takes pages, and preempts `victims` in order while too few are free.

        Returns whether it took them; if not, victims may be preempted all the same.
        """
        for victim in victims if self._free < num_pages else ():
            if victim.request_id in self._settled or victim.slot is None:
                continue
            released = self._view.ledger.num_released_by(victim.pages)
            if not released:
                continue
            # Placed here means "not in this plan": a victim in flight is held back
            # now, so that it can be preempted when the next plan is made.
            self._settled.add(victim.request_id)
            if victim.num_plans_in_flight:
                return False
            self._preempted.append(victim)
            self._free += released
            if victim.num_remaining_tokens > 1:
                self._committed -= self._missing_pages(
                    victim, victim.num_projected_tokens
                )
            if self._free >= num_pages:
                break
        if self._free < num_pages:
            return False
        self._free -= num_pages
        return True

    def add_decodes(
        self,
        rows: Sequence[Row],
        victims: Callable[[Request], Iterable[Request]],
    ) -> None:
        """Adds the next tokens of running requests, as far as they fit.

        `victims` returns the requests to preempt for a request's page, in order.
        """
        page_size, decodes, placed = self._page_size, self._decodes, self._settled
        most = self._view.buckets.max_rows
        for row in rows:
            request, start, _, _ = row
            name = request.request_id
            if name in placed or len(decodes) >= most:
                continue
            if start >= len(request.pages) * page_size:
                need = self._missing_pages(request, start + 1)
                if not self._take_pages(need, victims(request)):
                    continue
            placed.add(name)
            decodes.append(row)

    def add_prefill(self, request: Request, victims: Iterable[Request] = ()) -> bool:
        """Adds as much of a request's prefill as fits; returns whether more may fit.

        A running request may preempt `victims`, a waiting one none. A waiting request
        that cannot be admitted closes admission, so that no smaller one overtakes it,
        but the prefill of running requests may still fit.
        """
        is_waiting = request.state is RequestState.WAITING
        if request.request_id in self._settled or (
            is_waiting and not self.is_admitting
        ):
            return True
        view = self._view
        room = view.buckets.block_edge_beside(
            len(self._decodes), view.max_num_batched_tokens
        )
        room = min(room, self._limit_blocks) - self.used_blocks
        room_tokens = room * self._block_tokens
        if room_tokens <= 0:
            self.ended_by = self._why_no_room()
            self._leaves_work = True
            return False
        if not is_waiting:
            return self._continue(request, room_tokens, victims)
        self.is_admitting = self._admit(request, room_tokens)
        return True

    def _why_no_room(self) -> PlanEnd:
        if self.used_blocks == self._view.buckets.max_blocks:
            return PlanEnd.FULL
        is_policy = self.used_blocks >= self._limit_blocks
        return self._limit_end if is_policy else PlanEnd.TOKEN_LIMIT

    def _continue(
        self, request: Request, room_tokens: int, victims: Iterable[Request]
    ) -> bool:
        start = request.num_dispatched_tokens
        num_tokens = min(request.num_projected_tokens - start, room_tokens)
        need = self._missing_pages(request, start + num_tokens)
        if not self._take_pages(need, victims):
            # What the free pages can hold, in whole blocks: pages hold whole blocks.
            self.ended_by = PlanEnd.PAGES
            pages = len(request.pages) + self._free
            num_tokens = min(num_tokens, pages * self._page_size - start)
            if num_tokens <= 0:
                return False
            need = self._missing_pages(request, start + num_tokens)
            self._free -= need
        self._committed -= need
        self._place_chunk(request, start, num_tokens)
        return True

    def places(self, ordered: Sequence[Request]) -> list[int]:
        """Returns the places of those prompts that slots and pages suffice for.

        They are what `add_prefill` would take in this order into an endless step, if
        no running request is preempted: so a step can be priced before it is filled.
        """
        found: list[int] = []
        admits, slots = not self._preempted, self._view.num_free_slots
        spare, num_blocks = self._free - self._committed, 0
        for place, request in enumerate(ordered):
            tokens = request.num_remaining_tokens
            if request.state is RequestState.WAITING:
                _, whole, revived = self._pages_of(request)
                spare -= (whole + revived) * admits
                slots -= admits
                least = _WATERMARK_PAGES if found else self._watermark
                admits &= slots >= 0 and spare >= least
                tokens = request.num_known_tokens - request.num_shared_tokens
                if not admits:
                    continue
            found.append(place)
            num_blocks += -(-tokens // self._block_tokens)
            if num_blocks >= self._view.buckets.max_blocks:
                break
        return found

    def _pages_of(self, request: Request) -> tuple[int, int, int]:
        """Returns the shared pages of a waiting request, its others, and the revived.

        The revived are shared ones that no request holds yet.
        """
        ledger = self._view.ledger
        num_shared = request.num_shared_tokens // self._page_size
        shared = ledger.find_prefix(request.page_hashes[:num_shared])
        whole = ledger.pages_for(request.num_known_tokens) - len(shared)
        return len(shared), whole, ledger.num_evictable_among(shared)

    @property
    def _watermark(self) -> int:
        is_alone = not self._view.running and not self._num_admitted
        return 0 if is_alone else _WATERMARK_PAGES

    def _admit(self, request: Request, room_tokens: int) -> bool:
        if self._num_admitted >= self._view.num_free_slots:
            self.ended_by = PlanEnd.ROWS
            return False
        start = request.num_shared_tokens
        num_shared, whole, revived = self._pages_of(request)
        num_tokens = min(request.num_known_tokens - start, room_tokens)
        spare = self._free - self._committed - self._watermark
        # Pages taken back in this plan may be among the shared ones, and counting
        # both would count them twice: admit when the next plan is made.
        if self._preempted or whole + revived > spare:
            self.ended_by = PlanEnd.PAGES
            return False
        need = self._view.ledger.pages_for(start + num_tokens) - num_shared
        self._free -= need + revived
        self._committed += whole - need
        self._num_admitted += 1
        self._place_chunk(request, start, num_tokens)
        return True

    def _place_chunk(self, request: Request, start: int, num_tokens: int) -> None:
        self._settled.add(request.request_id)
        self.used_blocks += -(-num_tokens // self._block_tokens)
        is_last = start + num_tokens == request.num_projected_tokens
        self._chunks.append(Row(request, start, num_tokens, draws_token=is_last))

    def build(self) -> StepPlan | None:
        """Returns the plan; None if there is nothing to compute."""
        if self.is_empty:
            return None
        view = self._view
        bucket = view.buckets.fit(len(self._decodes), self.used_blocks)
        is_cut_short = bool(self._chunks) and not self._chunks[-1].draws_token
        if bucket.num_blocks == self.used_blocks and self.used_blocks:
            self.ended_by = PlanEnd.FULL
        elif self.ended_by is PlanEnd.NO_WORK:
            if is_cut_short:
                self.ended_by = self._why_no_room()
            elif len(view.waiting) > self._num_admitted >= view.num_free_slots:
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
            leaves_work=self._leaves_work or is_cut_short,
        )
