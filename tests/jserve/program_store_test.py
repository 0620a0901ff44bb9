import errno
import logging
import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve import program_store
from jserve.packing import Packer
from jserve.program_store import (
    ProgramStore,
    UntrustedFolderError,
    make_private_folder,
)
from jserve.programs import DeviceState, Programs
from jserve_models.registry import load_model
from jserve_models.steps import new_kv
from jserve_sched.buckets import BucketTable

TABLE = BucketTable((4,), (0, 1))
NUM_PAGES, PAGE_SIZE, PAGES_PER_ROW = 8, 128, 4
SIGNATURE = ("square", 8)
TEXT = "the lowered step"


@pytest.fixture(scope="module")
def compiled() -> jax.stages.Compiled:
    shape = jax.ShapeDtypeStruct((8,), np.float32)
    return jax.jit(lambda x: x * x, donate_argnums=0).lower(shape).compile()


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "programs"


def open_store(folder: pathlib.Path) -> ProgramStore:
    return ProgramStore(folder, is_writable=True)


def program_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return list(folder.glob("*.program"))


def test_a_program_comes_back_as_it_was(
    folder: pathlib.Path, compiled: jax.stages.Compiled
) -> None:
    size = open_store(folder).save("square", SIGNATURE, TEXT, compiled)
    (path,) = program_files(folder)
    assert path.name.startswith("square-")
    assert size == path.stat().st_size
    assert folder.stat().st_mode & 0o777 == 0o700
    stored = open_store(folder).load("square", SIGNATURE)
    assert stored is not None
    assert stored.executable_bytes == size
    values = jnp.arange(8, dtype=jnp.float32)
    squares = stored.compiled(values)
    assert squares.tolist() == [0, 1, 4, 9, 16, 25, 36, 49]
    assert values.is_deleted(), "the donation is lost"


def test_only_the_very_same_program_is_found(
    folder: pathlib.Path, compiled: jax.stages.Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(folder)
    assert store.load("square", SIGNATURE) is None
    store.save("square", SIGNATURE, TEXT, compiled)
    assert store.load("square", ("square", 16)) is None
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        flagged = open_store(folder)
        assert flagged.load("square", SIGNATURE) is None
        assert flagged.load_lowered("square", SIGNATURE, TEXT) is None
    with monkeypatch.context() as patch:
        patch.setattr(program_store, "num_cpus", lambda: 77)
        assert open_store(folder).load("square", SIGNATURE) is None
    with monkeypatch.context() as patch:
        patch.setattr(program_store, "_source_digest", lambda: "code has changed")
        assert open_store(folder).load("square", SIGNATURE) is None
    assert open_store(folder).load("square", SIGNATURE) is not None


def test_an_edit_that_changes_no_program_costs_a_trace_once(
    folder: pathlib.Path, compiled: jax.stages.Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(folder).save("square", SIGNATURE, TEXT, compiled)
    monkeypatch.setattr(program_store, "_source_digest", lambda: "a comment is mended")
    store = open_store(folder)
    assert store.load("square", SIGNATURE) is None
    assert store.load_lowered("square", ("square", 16), TEXT) is None
    assert store.load_lowered("square", SIGNATURE, "another step") is None
    assert store.load("square", SIGNATURE) is None
    stored = store.load_lowered("square", SIGNATURE, TEXT)
    assert stored is not None
    assert stored.compiled(jnp.full(8, 3.0)).tolist() == [9] * 8
    assert len(program_files(folder)) == 1
    assert open_store(folder).load("square", SIGNATURE) is not None


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (pytest.fail, ("a broken file was unpickled",))


@pytest.mark.parametrize(
    "breakage",
    [
        lambda content: b"",
        lambda content: b"something else",
        lambda content: content[:40],
        lambda content: content[:-1],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[:49] + pickle.dumps(Bomb()),
    ],
)
@pytest.mark.parametrize("suffix", ["*.program", "*.index"])
def test_broken_files_cost_one_warning_and_are_written_anew(
    suffix: str,
    folder: pathlib.Path,
    compiled: jax.stages.Compiled,
    caplog: pytest.LogCaptureFixture,
    breakage: Callable[[bytes], bytes],
) -> None:
    store = open_store(folder)
    for size in (8, 16):
        store.save("square", ("square", size), TEXT, compiled)
    for path in folder.glob(suffix):
        path.write_bytes(breakage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, logger="jserve"):
        for size in (8, 16):
            assert store.load("square", ("square", size)) is None
    (record,) = caplog.records
    assert "square-" in record.getMessage()
    assert "broken" in record.getMessage()
    assert not list(folder.glob(suffix)), "it would be read again and again"
    store.save("square", SIGNATURE, TEXT, compiled)
    assert store.load("square", SIGNATURE) is not None


def test_a_sound_file_the_compiler_refuses_is_passed_over(
    folder: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_private_folder(folder)
    store = ProgramStore(folder, is_writable=False)
    key = store._program_key(SIGNATURE, TEXT)
    payload = pickle.dumps(("no executable", None, None))
    path = store._path("square", key, ".program")
    path.write_bytes(
        program_store._MAGIC + program_store._digest(key, payload) + payload
    )
    with caplog.at_level(logging.WARNING, logger="jserve"):
        assert store.load_lowered("square", SIGNATURE, TEXT) is None
    assert "is not used" in caplog.text
    assert path.exists(), "deleted by one who may not write"
    assert open_store(folder).load_lowered("square", SIGNATURE, TEXT) is None
    assert not path.exists()


def test_a_full_disk_costs_one_warning(
    folder: pathlib.Path,
    compiled: jax.stages.Compiled,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_full(draft: str, path: pathlib.Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = open_store(folder)
    monkeypatch.setattr(os, "replace", is_full)
    with caplog.at_level(logging.WARNING, logger="jserve"):
        for size in (8, 16):
            assert store.save("square", ("square", size), TEXT, compiled) is None
    (record,) = caplog.records
    assert "No space left" in record.getMessage()
    assert not list(folder.iterdir()), "a draft is left behind"


def test_nothing_is_written_where_nothing_may_be(
    folder: pathlib.Path, compiled: jax.stages.Compiled
) -> None:
    store = ProgramStore(folder, is_writable=False)
    assert store.save("square", SIGNATURE, TEXT, compiled) is None
    assert not list(folder.iterdir())


def test_a_folder_that_others_may_write_to_is_refused(folder: pathlib.Path) -> None:
    make_private_folder(folder)
    for mode in (0o770, 0o707, 0o722):
        folder.chmod(mode)
        with pytest.raises(UntrustedFolderError, match=f"mode {mode:o}"):
            open_store(folder)
    folder.chmod(0o755)
    open_store(folder)


def test_a_folder_of_another_user_is_refused(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_private_folder(folder)
    owner = os.geteuid()
    if owner == 0:
        owner = 4321
        os.chown(folder, owner, -1)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(UntrustedFolderError, match=f"belongs to user {owner}"):
        open_store(folder)
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    open_store(folder)


def test_what_was_longest_unused_goes_first(
    folder: pathlib.Path, compiled: jax.stages.Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(folder)
    for size in range(5):
        store.save("square", ("square", size), TEXT, compiled)
        for path in folder.iterdir():
            if path.stat().st_mtime > 2000.0:
                os.utime(path, (1000.0 + size, 1000.0 + size))
    store.load("square", ("square", 0))
    monkeypatch.setattr(program_store, "MAX_STORED_FILES", 6)
    store.prune()
    assert [store.load("square", ("square", size)) is None for size in range(5)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    size = program_files(folder)[0].stat().st_size
    monkeypatch.setattr(program_store, "MAX_STORED_BYTES", 2 * size + 999)
    store.prune()
    assert len(program_files(folder)) == 2


def make_programs(folder: pathlib.Path) -> tuple[Programs, DeviceState]:
    """Compiles a toy's programs, or loads them."""
    model = load_model("toy", seed=0, dtype=np.float32)
    state = DeviceState(
        kv=new_kv(model.config, NUM_PAGES, PAGE_SIZE, np.dtype(np.float32)),
        slot_tokens=jnp.zeros(4, jnp.int32),
    )
    programs = Programs(
        model=model,
        table=TABLE,
        max_pages_per_row=PAGES_PER_ROW,
        captures_logits=False,
        store=open_store(folder),
    )
    programs.compile(TABLE.buckets, state)
    return programs, state


def run_all(programs: Programs, state: DeviceState) -> list[list[int]]:
    """Runs every program; returns the tokens of each, and checks the donations."""
    packer = Packer(num_slots=4, num_pages=NUM_PAGES, max_pages_per_row=PAGES_PER_ROW)
    found = []
    for bucket in TABLE.buckets:
        packed = packer.pack_synthetic(bucket, 2, bucket.num_blocks, PAGE_SIZE)
        place = state.kv[0].unsafe_buffer_pointer()
        state, (tokens,) = programs.run(bucket, state, packed)
        found.append(tokens.tolist())
        assert state.kv[0].unsafe_buffer_pointer() == place, "the cache was copied"
    return found


def test_another_process_loads_what_this_one_compiled(folder: pathlib.Path) -> None:
    programs, state = make_programs(folder)
    assert {one.source for one in programs.reports} == {"compiled"}
    child = subprocess.run(
        [sys.executable, __file__, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == str(run_all(programs, state))


def load_and_run(folder: pathlib.Path) -> None:
    """What the other process does."""
    programs, state = make_programs(folder)
    assert [one.source for one in programs.reports] == ["stored"] * len(TABLE.buckets)
    assert all(one.trace_s == 0 for one in programs.reports)
    assert all(one.executable_bytes for one in programs.reports)
    kv_bytes = sum(part.nbytes for part in state.kv)
    assert all(one.alias_bytes >= kv_bytes for one in programs.reports)
    programs.mark_warm()
    found = run_all(programs, state)
    assert programs.num_compiles_after_warmup == 0
    print(found)


if __name__ == "__main__":
    load_and_run(pathlib.Path(sys.argv[1]))
