import dataclasses
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve.engine import program_store
from jserve.engine.machine import num_cpus
from jserve.engine.packing import Packed, Packer, padded_tables
from jserve.engine.program_kinds import programs_of
from jserve.engine.program_store import ProgramStore
from jserve.engine.programs import DeviceState, Programs
from jserve.engine.sampling import empty_slots
from jserve_models.attention import page_loop
from jserve_models.registry import LoadedModel, load_model
from jserve_models.toy import TOY
from jserve_sched.buckets.table import Bucket, BucketTable
from tests.engine_harness import step_of_little

pytestmark = pytest.mark.usefixtures("quick_compiler")
NUM_SLOTS, NUM_PAGES, PAGE_SIZE, PAGES_PER_ROW = 16, 8, 128, 4
TABLE = BucketTable((NUM_SLOTS,), (0, 4))
BUCKETS = TABLE.buckets
NUM_PROGRAMS = 6  # two buckets, the heads of their rows, two of slots


@pytest.fixture
def small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Programs, "step_function", step_of_little)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("toy", seed=0, dtype=np.float32)


@pytest.fixture
def state(model: LoadedModel) -> DeviceState:
    kv = model.new_kv(NUM_PAGES, PAGE_SIZE, np.float32)
    tables = padded_tables(NUM_SLOTS, PAGES_PER_ROW, NUM_PAGES)
    return DeviceState(
        kv,
        jnp.zeros(NUM_SLOTS, jnp.int32),
        jnp.asarray(tables),
        jax.tree.map(jnp.asarray, empty_slots(NUM_SLOTS, model.config.vocab_size)),
    )


@pytest.fixture
def make_programs(model: LoadedModel, state: DeviceState) -> Callable[[], Programs]:
    return lambda: Programs(
        model=model,
        state=state,
        captures_logits=False,
    )


def padding(bucket: Bucket) -> Packed:
    packer = Packer(
        num_slots=NUM_SLOTS,
        num_pages=NUM_PAGES,
        page_size=PAGE_SIZE,
        max_pages_per_row=PAGES_PER_ROW,
        vocab_size=TOY.vocab_size,
    )
    packed, _ = packer.pack_synthetic(bucket, [], [], is_drawn=False)
    return packed


@pytest.mark.usefixtures("small_programs")
def test_only_what_is_asked_for_and_missing_is_made(
    make_programs: Callable[[], Programs], state: DeviceState
) -> None:
    programs = make_programs()
    programs.compile(BUCKETS[:1])
    assert programs.buckets == {BUCKETS[0]}
    first_s = programs.wall_s
    programs.compile(BUCKETS)
    assert programs.num_compiled == NUM_PROGRAMS
    assert programs.wall_s > first_s > 0
    made = {one.program for one in programs.reports}
    assert made == {str(one) for one in programs_of(BUCKETS)}
    kv_bytes = sum(part.nbytes for part in state.kv)
    for bucket in BUCKETS:
        memory = programs._compiled[bucket].memory_analysis()
        assert memory is not None and memory.alias_size_in_bytes >= kv_bytes
    for one in programs.reports:
        assert one.trace_s > 0 and one.compile_s > 0
        assert (one.source, one.executable_bytes) == ("compiled", None)


@pytest.mark.usefixtures("small_programs")
def test_a_program_counts_while_it_is_made(
    make_programs: Callable[[], Programs],
) -> None:
    programs, counts = make_programs(), list[int]()

    def should_stop() -> bool:
        while not programs.num_compiling:  # until all have been handed to threads
            time.sleep(0.001)
        counts.append(programs.num_compiling)
        return True

    programs.compile(BUCKETS[:1], should_stop=should_stop)
    num_programs = len(programs_of(BUCKETS[:1]))  # the bucket, its heads, page tables
    assert max(counts) == min(num_programs, num_cpus() + 1)
    assert programs.num_compiling == 0


def test_no_program_is_begun_once_it_should_stop(
    make_programs: Callable[[], Programs],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs = make_programs()
    with monkeypatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", None)
        patch.setattr(jax, "jit", None)
        programs.compile(BUCKETS, should_stop=lambda: True)
    assert programs.num_compiled == 0

    answers = iter([False, False])  # the first is traced, but not compiled
    programs.compile(BUCKETS[:1], should_stop=lambda: next(answers, True))
    assert programs.buckets == frozenset()
    programs.compile(BUCKETS[:1], should_stop=lambda: False)
    assert programs.buckets == {BUCKETS[0]}


@pytest.mark.usefixtures("small_programs")
def test_a_stored_program_is_of_its_model_and_its_code(
    model: LoadedModel,
    state: DeviceState,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make(model: LoadedModel = model) -> list[tuple[str, bool]]:
        programs = Programs(
            model=model,
            state=state,
            captures_logits=False,
            store=ProgramStore(tmp_path, is_writable=True),
        )
        programs.compile(BUCKETS)
        return [(one.source, one.trace_s > 0) for one in programs.reports]

    assert make() == [("compiled", True)] * NUM_PROGRAMS
    assert make() == [("stored", False)] * NUM_PROGRAMS
    config = dataclasses.replace(model.config, name="another")
    other = dataclasses.replace(model, config=config)
    assert make(other) == [("compiled", True)] * NUM_PROGRAMS
    other = dataclasses.replace(model, attention=page_loop)
    assert make(other) == [("compiled", True)] * NUM_PROGRAMS
    monkeypatch.setattr(program_store, "_source_digest", lambda: "edited")
    assert make() == [("compiled", True)] * NUM_PROGRAMS
    assert make() == [("stored", False)] * NUM_PROGRAMS


@pytest.mark.usefixtures("small_programs")
def test_what_a_worker_raises_comes_out(
    make_programs: Callable[[], Programs],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(lowered: jax.stages.Lowered) -> None:
        raise SystemExit

    programs = make_programs()
    with monkeypatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", fail)
        with pytest.raises(SystemExit):
            programs.compile(BUCKETS)
    assert programs.num_compiled == 0
    programs.compile(BUCKETS[:1])  # nothing is left locked
    assert programs.buckets == {BUCKETS[0]}


@pytest.mark.usefixtures("small_programs")
def test_compilations_after_warm_up_are_counted(
    make_programs: Callable[[], Programs],
) -> None:
    programs = make_programs()
    assert programs.num_compiles_after_warmup == 0
    programs.compile(BUCKETS[:1])
    programs.mark_warm()
    programs.compile(BUCKETS[:1])
    assert programs.num_compiles_after_warmup == 0
    programs.compile(BUCKETS[1:2])
    assert programs.num_compiles_after_warmup == 1
