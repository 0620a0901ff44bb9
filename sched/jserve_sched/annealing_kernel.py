"""The inner loop of the search: proposes a move, prices it, keeps it or not.

The one idea: batches form a linked list, and every move takes at most one job out of
each of two batches and hands it to the other. So only those two are computed anew;
later ones shift by the change in duration, and their count of met jobs is looked at
again only where the shift leaves the interval in which it holds. What is kept up to
date this way equals a full evaluation exactly, since times are whole nanoseconds.

One source serves twice: as plain Python it is fast on lists, and a compiler such as
Numba takes it on arrays, to the same plan bit for bit. Hence one long function
without helpers; chance comes in as draws made beforehand, with the acceptance bars
(temperature times the logarithm of a uniform draw) already computed.

Shapes: `N` jobs, `B` the largest batch, `K` proposals. A batch is named by an index
below `N`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Numbers the loop needs stand in this file, which a compiler's cache watches.
NEVER_NS = -(2**62)  # no wait is short enough
FOREVER_NS = 2**62  # no wait is too long
MERIT_MET = 1e-3  # of a job: what tells plans apart where no job is met

# Three moves of one job, each as likely (ours; the paper's are not known).
SQUEEZE = 0  # into the batch before; if that is full, in exchange for a job of it
DELAY = 1  # into the batch after; if that is full, into a new one between the two
SWAP = 2  # in exchange for any other job
NUM_MOVES = 3

_NONE = -1  # no job, no batch

# A list of whole numbers where Python runs it, an int64 array where it is compiled.
Ints = Any
Floats = Any


class Tables(NamedTuple):
    """What does not change. `job * B + size - 1` is a row and column of a table.

    Attributes:
      max_batch: B.
      max_kv_tokens: a batch's budget.
      num_behind: jobs behind the ones searched; they shift with the end of the plan.
      exec_ns: `[N * B]` durations.
      latest_ns: `[N * B]` longest waits.
      kv_tokens: `[N]`.
    """

    max_batch: int
    max_kv_tokens: int
    num_behind: int
    exec_ns: Ints
    latest_ns: Ints
    kv_tokens: Ints


class Draws(NamedTuple):
    """Chance, `[K]` each.

    Attributes:
      moves: 0 to `NUM_MOVES` - 1.
      jobs: the job that moves.
      others: the job it is exchanged for; a place in a batch, modulo its size.
      bars: the least change of merit accepted, 0 or below.
    """

    moves: Ints
    jobs: Ints
    others: Ints
    bars: Floats


class State(NamedTuple):
    """Where the chain stands; the kernel writes into it.

    Attributes:
      sums: `[len(SUMS)]` see the indices below.
      batch_of: `[N]` batch of each job.
      members: `[N * B]` jobs of each batch, `B` places a batch.
      sizes: `[N]` members; 0: the batch is not part of the plan.
      before: `[N]` the batch that runs before, or -1.
      after: `[N]` the batch that runs after, or -1.
      starts: `[N]` when it starts, ns from now.
      durations: `[N]` ns.
      execs: `[N]` sum of its members' durations, ns.
      met: `[N]` members that keep their promises; true while it starts after `low`
        and not after `high`.
      low: `[N]` ns.
      high: `[N]` ns.
      kv: `[N]` KV tokens of its members.
      unused: `[N]` stack of batches not part of the plan.
      best_starts: `[N]` when each job started in the best plan seen.
      changed: `[N, 4]` scratch: batch, met, low, high of those that a shift changes.
      edited: `[2, 6]` scratch: size, duration, execs, met, low, high of the two
        batches that a move edits.
    """

    sums: Ints
    batch_of: Ints
    members: Ints
    sizes: Ints
    before: Ints
    after: Ints
    starts: Ints
    durations: Ints
    execs: Ints
    met: Ints
    low: Ints
    high: Ints
    kv: Ints
    unused: Ints
    best_starts: Ints
    changed: Ints
    edited: Ints


# Indices of `State.sums`.
MET = 0  # jobs that keep their promises in the chain's plan
TOTAL_NS = 1  # its latencies
BEST_MET = 2  # the same of the best plan
BEST_TOTAL_NS = 3
IS_BEST = 4  # 1: the chain's plan is the best one and `best_starts` is not written yet
NUM_UNUSED = 5  # height of the stack
NUM_ACCEPTED = 6
NUM_SUMS = 7


def anneal(tables: Tables, draws: Draws, state: State, first: int, last: int) -> None:
    """Carries out proposals `first` to `last` - 1 and leaves `best_starts` written.

    Cutting a range into several calls changes nothing.
    """
    max_batch, max_kv_tokens, num_behind, exec_ns, latest_ns, kv_tokens = tables
    moves, jobs, others, bars = draws
    sums, batch_of, members, sizes, before, after = state[:6]
    starts, durations, execs, met, low, high, kv = state[6:13]
    unused, best_starts, changed, edited = state[13:]
    num_met, total_ns = sums[MET], sums[TOTAL_NS]
    merit = (num_met + MERIT_MET) / total_ns
    best_merit = (sums[BEST_MET] + MERIT_MET) / sums[BEST_TOTAL_NS]
    num_jobs = len(batch_of)

    for step in range(first, last):
        # Job `x` goes from batch `a` to `b`, which runs later, and `y` from `b` to `a`.
        x, y = jobs[step], _NONE
        a = batch_of[x]
        move = moves[step]
        is_exchange = False
        if move == SWAP:
            y = others[step]
            b = batch_of[y]
            if a == b:
                continue
            if starts[a] > starts[b]:
                a, b, x, y = b, a, y, x
            is_exchange = True
        elif move == SQUEEZE:
            b, y, x = a, x, _NONE
            a = before[b]
            if a == _NONE:
                continue
            if sizes[a] == max_batch or kv[a] + kv_tokens[y] > max_kv_tokens:
                x = members[a * max_batch + others[step] % sizes[a]]
                is_exchange = True
        else:
            b = after[a]
            if (
                b == _NONE
                or sizes[b] == max_batch
                or kv[b] + kv_tokens[x] > max_kv_tokens
            ):
                if sizes[a] > 1:
                    sums[NUM_UNUSED] -= 1
                    fresh = unused[sums[NUM_UNUSED]]
                    before[fresh], after[fresh] = a, b
                    after[a] = fresh
                    if b != _NONE:
                        before[b] = fresh
                    starts[fresh] = starts[a] + durations[a]
                    durations[fresh] = execs[fresh] = met[fresh] = kv[fresh] = 0
                    b = fresh
                elif b == _NONE:
                    continue
                else:
                    y = members[b * max_batch + others[step] % sizes[b]]
                    is_exchange = True
        if is_exchange:
            gain = kv_tokens[y] - kv_tokens[x]
            if (sizes[a] > 1 and kv[a] + gain > max_kv_tokens) or (
                sizes[b] > 1 and kv[b] - gain > max_kv_tokens
            ):
                continue

        # What the two batches would be, and what that does to those behind them.
        more_met = more_ns = shift = num_changed = 0
        for side in range(2):
            if side == 0:
                batch, leaves, joins, stop = a, x, y, b
            else:
                batch, leaves, joins, stop = b, y, x, _NONE
            num = sizes[batch]
            num_seen = num if joins == _NONE else num + 1
            size = num_seen if leaves == _NONE else num_seen - 1
            start = starts[batch] + shift
            duration = sum_ns = count = 0
            lowest, highest = NEVER_NS, FOREVER_NS
            place = batch * max_batch
            for row in range(num_seen):
                job = members[place + row] if row < num else joins
                if job == leaves:
                    continue
                cell = job * max_batch + size - 1
                own = exec_ns[cell]
                sum_ns += own
                if own > duration:
                    duration = own
                latest = latest_ns[cell]
                if latest >= start:
                    count += 1
                    if latest < highest:
                        highest = latest
                elif latest > lowest:
                    lowest = latest
            edit = side * 6
            edited[edit] = size
            edited[edit + 1] = duration
            edited[edit + 2] = sum_ns
            edited[edit + 3] = count
            edited[edit + 4] = lowest
            edited[edit + 5] = highest
            more_met += count - met[batch]
            more_ns += sum_ns - execs[batch] + size * start - num * starts[batch]
            shift += duration - durations[batch]
            if shift == 0:
                continue
            batch = after[batch]
            while batch != stop:
                num = sizes[batch]
                more_ns += num * shift
                start = starts[batch] + shift
                if start > high[batch] or start <= low[batch]:
                    count = 0
                    lowest, highest = NEVER_NS, FOREVER_NS
                    for row in range(batch * max_batch, batch * max_batch + num):
                        latest = latest_ns[members[row] * max_batch + num - 1]
                        if latest >= start:
                            count += 1
                            if latest < highest:
                                highest = latest
                        elif latest > lowest:
                            lowest = latest
                    change = num_changed * 4
                    num_changed += 1
                    changed[change] = batch
                    changed[change + 1] = count
                    changed[change + 2] = lowest
                    changed[change + 3] = highest
                    more_met += count - met[batch]
                batch = after[batch]
        more_ns += num_behind * shift

        new_merit = (num_met + more_met + MERIT_MET) / (total_ns + more_ns)
        if new_merit - merit >= bars[step]:
            if new_merit > best_merit:
                best_merit = new_merit
                sums[BEST_MET] = num_met + more_met
                sums[BEST_TOTAL_NS] = total_ns + more_ns
                sums[IS_BEST] = 1
            elif sums[IS_BEST] == 1:
                for job in range(num_jobs):
                    best_starts[job] = starts[batch_of[job]]
                sums[IS_BEST] = 0
            merit = new_merit
            num_met += more_met
            total_ns += more_ns
            sums[NUM_ACCEPTED] += 1
            shift = 0
            for side in range(2):
                if side == 0:
                    batch, leaves, joins, stop = a, x, y, b
                else:
                    batch, leaves, joins, stop = b, y, x, _NONE
                place = batch * max_batch
                end = place + sizes[batch]
                if leaves != _NONE:
                    kv[batch] -= kv_tokens[leaves]
                    while members[place] != leaves:
                        place += 1
                    members[place] = members[end - 1]
                    end -= 1
                if joins != _NONE:
                    kv[batch] += kv_tokens[joins]
                    members[end] = joins
                    batch_of[joins] = batch
                starts[batch] += shift
                edit = side * 6
                shift += edited[edit + 1] - durations[batch]
                sizes[batch] = edited[edit]
                durations[batch] = edited[edit + 1]
                execs[batch] = edited[edit + 2]
                met[batch] = edited[edit + 3]
                low[batch] = edited[edit + 4]
                high[batch] = edited[edit + 5]
                if shift != 0:
                    batch = after[batch]
                    while batch != stop:
                        starts[batch] += shift
                        batch = after[batch]
            for change in range(0, num_changed * 4, 4):
                batch = changed[change]
                met[batch] = changed[change + 1]
                low[batch] = changed[change + 2]
                high[batch] = changed[change + 3]
        # Emptied by the move, or opened for one that was turned down.
        for batch in (a, b):
            if sizes[batch] == 0:
                if before[batch] != _NONE:
                    after[before[batch]] = after[batch]
                if after[batch] != _NONE:
                    before[after[batch]] = before[batch]
                unused[sums[NUM_UNUSED]] = batch
                sums[NUM_UNUSED] += 1

    sums[MET] = num_met
    sums[TOTAL_NS] = total_ns
    if sums[IS_BEST] == 1:
        for job in range(num_jobs):
            best_starts[job] = starts[batch_of[job]]
        sums[IS_BEST] = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """How the inner loop runs; what a search is handed.

    Attributes:
      run: `anneal`, or what a compiler made of it.
      table: makes what `run` is fast on from an array.
      slice_proposals: proposals carried out between two looks at the clock.
    """

    run: Callable[[Tables, Draws, State, int, int], None]
    table: Callable[[np.ndarray], Any]
    slice_proposals: int


def _as_list(table: np.ndarray) -> list[Any]:
    return table.ravel().tolist()


PYTHON_KERNEL = Kernel(run=anneal, table=_as_list, slice_proposals=64)
