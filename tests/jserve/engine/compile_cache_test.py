import os
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jserve.engine import machine
from jserve.engine.compile_cache import (
    make_private_folder,
    open_compile_cache,
)
from jserve.engine.program_store import ProgramStore
from jserve.engine.programs import DeviceState, Programs
from jserve.engine.sampling import empty_slots
from jserve_models.registry import load_model
from jserve_sched.buckets.table import BucketTable
from tests.engine_harness import step_of_little

TABLE = BucketTable((4,), (0, 1))

_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def small_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leaves JAX's settings as they were."""
    monkeypatch.setattr(Programs, "step_function", step_of_little)
    before = {name: getattr(jax.config, name) for name in _SETTINGS}
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def opened(folder: pathlib.Path) -> ProgramStore:
    cache = open_compile_cache(str(folder))
    assert cache is not None
    return cache


def make_programs(cache: ProgramStore, *, stores: bool = True) -> list[str]:
    """Compiles a toy's programs; returns where each came from, largest first."""
    model = load_model("toy", seed=0, dtype=np.float32)
    kv = model.new_kv(8, 128, np.float32)
    sampler = jax.tree.map(jnp.asarray, empty_slots(4, model.config.vocab_size))
    ints = jnp.zeros(4, jnp.int32), jnp.zeros((5, 4), jnp.int32)
    state = DeviceState(kv, *ints, sampler)
    programs = Programs(
        model=model,
        state=state,
        captures_logits=False,
        store=cache if stores else None,
    )
    programs.compile(TABLE.buckets)
    sources = {one.program: one.source for one in programs.reports}
    return [sources[str(bucket)] for bucket in TABLE.buckets]


def test_jax_keeps_what_the_store_does_not(tmp_path: pathlib.Path) -> None:
    cache = opened(tmp_path)
    folder = cache.folder.parent
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    device = jax.devices()[0]
    assert folder.name.startswith(f"{jax.__version__}-{device.platform}-")
    assert make_programs(cache, stores=False) == ["compiled", "compiled"]
    assert make_programs(cache, stores=False) == ["cache", "cache"]
    # A hit is counted for its own program.
    entries = sorted((cache.folder.parent / "xla").glob("jit_step*-cache"))
    assert len(entries) == 6
    entries[0].unlink()
    assert sorted(make_programs(cache, stores=False)) == ["cache", "compiled"]


def test_what_the_store_lacks_is_compiled_once_though_jax_knows_it(
    tmp_path: pathlib.Path,
) -> None:
    cache = opened(tmp_path)
    make_programs(cache, stores=False)
    # What came from JAX's cache could not be stored.
    assert make_programs(cache) == ["compiled", "compiled"]
    assert make_programs(cache) == ["stored", "stored"]
    broken, *_ = cache.folder.glob("B4xNB1-*.program")
    broken.write_bytes(b"")
    for entry in (cache.folder.parent / "xla").glob("*-cache"):  # broken as well
        entry.write_bytes(entry.read_bytes()[:9])
    assert make_programs(cache) == ["compiled", "stored"]
    assert make_programs(cache) == ["stored", "stored"]


def test_folders_that_others_could_write_to_are_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "made"
    make_private_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    for mode in (0o770, 0o707, 0o722):
        folder.chmod(mode)
        with pytest.raises(match=f"mode {mode:o}"):
            make_private_folder(folder)
    folder.chmod(0o755)
    make_private_folder(folder)
    owner = os.geteuid()
    if owner == 0:
        owner = 4321
        os.chown(folder, owner, -1)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(match=f"belongs to user {owner}"):
        make_private_folder(folder)


@pytest.mark.parametrize("place", [".", "programs", "xla", "no folder"])
def test_a_folder_of_no_use_costs_one_warning(
    place: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_dir = tmp_path / "file"
    if place == "no folder":
        cache_dir.touch()
    else:
        (opened(cache_dir).folder.parent / place).chmod(0o777)
    assert open_compile_cache(str(cache_dir)) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("no compile cache: ")


def test_flags_and_cores_make_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.machine_digest()
    assert machine.machine_digest() == before
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        assert machine.machine_digest() != before
    cores = {3, 5, *range(100, 175)}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores, raising=False)
    assert machine.num_cpus() == 77
    assert machine.machine_digest() != before


def test_a_folder_that_cannot_be_written_is_still_read(
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert make_programs(opened(tmp_path)) == ["compiled", "compiled"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    cache = opened(tmp_path)
    assert make_programs(cache) == ["stored", "stored"]
    (record,) = caplog.records
    assert "are not kept" in record.getMessage()
    # What the store lacks is left to JAX.
    for path in cache.folder.iterdir():
        path.unlink()
    assert make_programs(cache) == ["cache", "cache"]
    assert not list(cache.folder.iterdir())
