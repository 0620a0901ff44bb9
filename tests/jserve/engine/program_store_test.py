import errno
import os
import pathlib
import pickle
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jserve.engine import program_store
from jserve.engine.program_store import ProgramStore

SIGNATURE = ("square", 8)


@pytest.fixture(scope="module")
def compiled() -> jax.stages.Compiled:
    shape = jax.ShapeDtypeStruct((8,), np.float32)
    return jax.jit(lambda x: x * x, donate_argnums=0).lower(shape).compile()


@pytest.fixture
def store(tmp_path: pathlib.Path) -> ProgramStore:
    return ProgramStore(tmp_path, is_writable=True)


def test_the_very_same_program_comes_back_as_it_was(
    store: ProgramStore,
    compiled: jax.stages.Compiled,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert store.load("square", SIGNATURE) is None
    size = store.save("square", SIGNATURE, compiled)
    again = ProgramStore(store.folder, is_writable=False)
    found = again.load("square", SIGNATURE)
    assert found is not None and found[1] == size
    values = jnp.arange(8, dtype=jnp.float32)
    assert found[0](values).tolist() == [0, 1, 4, 9, 16, 25, 36, 49]
    assert values.is_deleted(), "the donation is lost"

    assert store.load("square", ("square", 16)) is None
    for of_what in ("machine_digest", "_source_digest"):
        with monkeypatch.context() as patch:
            patch.setattr(program_store, of_what, lambda: "another")
            other = ProgramStore(store.folder, is_writable=True)
            assert other.load("square", SIGNATURE) is None


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (pytest.fail, ("a broken file was unpickled",))


@pytest.mark.parametrize(
    "breakage",
    [
        lambda content: b"",
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[:32] + pickle.dumps(Bomb()),
    ],
)
def test_broken_files_cost_one_warning_and_are_written_again(
    store: ProgramStore,
    compiled: jax.stages.Compiled,
    caplog: pytest.LogCaptureFixture,
    breakage: Callable[[bytes], bytes],
) -> None:
    for size in (8, 16):
        store.save("square", ("square", size), compiled)
    for path in store.folder.iterdir():
        path.write_bytes(breakage(path.read_bytes()))
    reader = ProgramStore(store.folder, is_writable=False)
    assert reader.load("square", SIGNATURE) is None
    assert len(list(store.folder.iterdir())) == 2, "deleted by one who may not write"
    caplog.clear()
    for size in (8, 16):
        assert store.load("square", ("square", size)) is None
    (record,) = caplog.records
    assert "square-" in record.getMessage() and "broken" in record.getMessage()
    assert not list(store.folder.iterdir()), "it would be read again and again"


def test_a_sound_file_the_compiler_refuses_is_passed_over(
    store: ProgramStore, caplog: pytest.LogCaptureFixture
) -> None:
    path = store._path("square", SIGNATURE)
    payload = pickle.dumps(("not an executable", None, None))
    path.write_bytes(program_store._sealed(path, payload))
    assert store.load("square", SIGNATURE) is None
    assert "is not used" in caplog.text
    assert not path.exists()


def test_a_full_disk_costs_one_warning(
    store: ProgramStore,
    compiled: jax.stages.Compiled,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_full(draft: str, path: pathlib.Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", is_full)
    for size in (8, 16):
        assert store.save("square", ("square", size), compiled) is None
    (record,) = caplog.records
    assert "No space left" in record.getMessage()
    assert not list(store.folder.iterdir()), "a draft is left behind"


def test_what_was_longest_unused_goes_first(
    store: ProgramStore,
    compiled: jax.stages.Compiled,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for size in range(4):
        store.save("square", ("square", size), compiled)
        path = store._path("square", ("square", size))
        os.utime(path, (1000.0 + size, 1000.0 + size))
    store.load("square", ("square", 0))
    most_bytes = 2 * path.stat().st_size + 999
    monkeypatch.setattr(program_store, "MAX_STORED_BYTES", most_bytes)
    store.prune()
    found = [store.load("square", ("square", size)) for size in range(4)]
    assert [one is None for one in found] == [False, True, True, False]
