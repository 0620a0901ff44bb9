import contextlib
import dataclasses
import logging
import pathlib
import resource
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from engine_harness import step_of_little
from jserve.compile_cache import CompileCache, forget_module, open_compile_cache
from jserve.programs import DeviceState, Programs
from jserve_models.registry import load_model
from jserve_models.steps import new_kv
from jserve_sched.buckets import BucketTable

TABLE = BucketTable((4,), (0, 1))

_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def settings_as_before() -> Iterator[None]:
    before = {name: getattr(jax.config, name) for name in _SETTINGS}
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Programs, "step_function", step_of_little)


def opened(folder: pathlib.Path) -> CompileCache:
    cache = open_compile_cache(str(folder))
    assert cache is not None
    return cache


def make_programs(cache: CompileCache, *, stores: bool = False) -> list[str]:
    """Compiles a toy's programs; returns where each came from, largest first."""
    model = load_model("toy", seed=0, dtype=np.float32)
    state = DeviceState(
        kv=new_kv(model.config, 8, 128, np.dtype(np.float32)),
        slot_tokens=jnp.zeros(4, jnp.int32),
    )
    programs = Programs(
        model=model,
        table=TABLE,
        max_pages_per_row=4,
        captures_logits=False,
        store=cache.program_store() if stores else None,
    )
    programs.compile(TABLE.buckets, state)
    sources = {one.bucket: one.source for one in programs.reports}
    return [sources[bucket] for bucket in TABLE.buckets]


def test_no_folder_means_no_cache() -> None:
    assert open_compile_cache("") is None


def test_every_program_is_kept_under_jax_and_the_device(tmp_path: pathlib.Path) -> None:
    cache = opened(tmp_path)
    assert cache.is_writable
    assert cache.folder.parent == tmp_path
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    device = jax.devices()[0]
    assert cache.folder.name.startswith(f"{jax.__version__}-{device.platform}-")
    assert make_programs(cache) == ["compiled", "compiled"]
    assert len(list((cache.folder / "xla").glob("*-cache"))) >= 2
    assert make_programs(cache) == ["cache", "cache"]


def test_a_hit_is_counted_for_its_own_program(tmp_path: pathlib.Path) -> None:
    cache = opened(tmp_path)
    make_programs(cache)
    # One entry goes: that program alone is compiled again, and which one is known.
    entries = sorted((cache.folder / "xla").glob("jit_step*-cache"))
    assert len(entries) == 2
    entries[0].unlink()
    assert sorted(make_programs(cache)) == ["cache", "compiled"]


def test_what_the_store_lacks_is_compiled_once_though_jax_knows_it(
    tmp_path: pathlib.Path,
) -> None:
    cache = opened(tmp_path)
    make_programs(cache)
    # What came from JAX's cache could not be stored.
    assert make_programs(cache, stores=True) == ["compiled", "compiled"]
    assert make_programs(cache, stores=True) == ["stored", "stored"]
    broken, *_ = (cache.folder / "programs").glob("B4xNB1-*.program")
    broken.write_bytes(b"")
    assert make_programs(cache, stores=True) == ["compiled", "stored"]
    assert make_programs(cache, stores=True) == ["stored", "stored"]


def test_a_store_that_cannot_be_written_leaves_it_to_jax(
    tmp_path: pathlib.Path,
) -> None:
    make_programs(opened(tmp_path))
    cache = dataclasses.replace(opened(tmp_path), is_writable=False)
    assert make_programs(cache, stores=True) == ["cache", "cache"]
    assert make_programs(cache, stores=True) == ["cache", "cache"]


def test_only_the_module_that_is_named_is_forgotten(tmp_path: pathlib.Path) -> None:
    cache = opened(tmp_path)
    make_programs(cache)
    forget_module("jit_step_B4xNB")  # the beginning of both
    assert make_programs(cache) == ["cache", "cache"]
    forget_module("jit_step_B4xNB0")
    assert make_programs(cache) == ["cache", "compiled"]


def test_a_file_where_the_folder_should_be(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with caplog.at_level(logging.WARNING, logger="jserve"):
        assert open_compile_cache(str(blocker / "cache")) is None
    (record,) = caplog.records
    assert "no compile cache" in record.getMessage()
    assert str(blocker) in record.getMessage()


def test_a_file_where_the_programs_should_be(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = opened(tmp_path)
    (cache.folder / "programs").write_text("")
    with caplog.at_level(logging.WARNING, logger="jserve"):
        assert cache.program_store() is None
    (record,) = caplog.records
    assert "no store of compiled programs" in record.getMessage()


def test_a_folder_that_others_may_write_to(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path).folder.chmod(0o777)
    with caplog.at_level(logging.WARNING, logger="jserve"):
        assert open_compile_cache(str(tmp_path)) is None
    (record,) = caplog.records
    assert "may be written by others" in record.getMessage()


def test_broken_entries_cost_one_warning_and_are_compiled_anew(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = opened(tmp_path)
    make_programs(cache)
    entries = sorted((cache.folder / "xla").glob("jit_step*-cache"))
    whole = entries[0].read_bytes()
    entries[0].write_bytes(whole[: len(whole) // 2])
    entries[1].write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="jserve"):
        assert make_programs(opened(tmp_path)) == ["compiled", "compiled"]
    (record,) = caplog.records
    assert record.getMessage().startswith("2 broken entries")
    assert make_programs(opened(tmp_path)) == ["cache", "cache"]


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file grows beyond 256 bytes: the kernel itself refuses.

    Not for a whole test: the file that gets this program's own output may be larger.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_that_cannot_be_written_is_still_read(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert make_programs(opened(tmp_path), stores=True) == ["compiled", "compiled"]
    with caplog.at_level(logging.WARNING, logger="jserve"), full_disk():
        cache = opened(tmp_path)
        assert not cache.is_writable
        assert make_programs(cache, stores=True) == ["stored", "stored"]
    (record,) = caplog.records
    assert "are not kept" in record.getMessage()
    assert not list(cache.folder.glob(".probe*"))


def test_a_disk_that_fills_up_meanwhile(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = opened(tmp_path)
    with caplog.at_level(logging.WARNING, logger="jserve"), full_disk():
        assert make_programs(cache, stores=True) == ["compiled", "compiled"]
    (record,) = caplog.records
    assert "are not stored" in record.getMessage()
