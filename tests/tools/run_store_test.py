import dataclasses
import pathlib

import numpy as np
import pytest

from jserve_tools.run_store import RunStore, run_key


@dataclasses.dataclass(frozen=True)
class Machine:
    name: str
    times_s: np.ndarray


@dataclasses.dataclass(frozen=True)
class Engine:
    name: str
    times_s: np.ndarray


class Opaque:
    def __init__(self, value: int) -> None:
        self.value = value


def test_what_is_put_is_found_by_the_next_program(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "runs"
    store = RunStore(folder, resumes=True)
    assert store.get("a") is None
    assert not folder.exists()
    store.put("a", {"qps": np.float64(0.1), "count": np.int64(3), "rows": (1, 2)})
    later = RunStore(folder, resumes=True)
    assert later.get("a") == {"qps": 0.1, "count": 3, "rows": [1, 2]}
    assert (later.get("b"), later.num_found) == (None, 1)
    with pytest.raises(TypeError, match="Opaque has no place"):
        store.put("c", Opaque(1))


def test_starting_anew_removes_finished_runs_and_nothing_else(
    tmp_path: pathlib.Path,
) -> None:
    RunStore(tmp_path, resumes=True).put("a", 1)
    (tmp_path / "notes.txt").write_text("mine")
    store = RunStore(tmp_path, resumes=False)
    assert store.get("a") is None
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\x1f\x8b\x08\x00half"])
def test_a_damaged_file_is_named(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "a.json.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json\.gz is no finished run, remove it"):
        RunStore(tmp_path, resumes=True).get("a")


def test_a_key_is_of_values_not_of_objects() -> None:
    one = Machine("a", np.arange(3.0))
    assert run_key(one, 1.0) == run_key(Machine("a", np.arange(3.0)), np.float64(1))
    assert run_key([1, 2]) == run_key((1, 2)) == run_key(range(1, 3))
    assert run_key(Opaque(1)) == run_key(Opaque(1))


def test_keys_of_different_values_differ(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "buckets.json"
    file.write_text("one")
    keys = [run_key(file)]
    file.write_text("two")
    values = [
        file,
        tmp_path,
        Machine("a", np.arange(3.0)),
        Machine("a", np.arange(4.0)),
        Machine("a", np.arange(3)),
        Engine("a", np.arange(3.0)),
        Opaque(1),
        Opaque(2),
        *(1, 1.0, "1", True, None, [1], [[1]], {"a": 1}, {"a": "1"}, ["a", 1]),
        *([], [[], []], [[[]]], ""),
    ]
    keys += [run_key(value) for value in values]
    keys += [run_key("a", "b"), run_key("ab"), run_key("a", ["b"])]
    assert len(set(keys)) == len(keys)


def test_a_key_counts_what_the_platform_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from jserve_tools import run_store

    run_store._surroundings.cache_clear()
    before = run_key(1)
    monkeypatch.setenv("JAX_PLATFORMS", "made up")
    run_store._surroundings.cache_clear()
    assert run_key(1) != before
    monkeypatch.undo()
    run_store._surroundings.cache_clear()
    assert run_key(1) == before


def test_a_key_counts_whether_searches_can_be_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from jserve_tools import run_store

    keys = set()
    for version in ("0.68.0", ""):
        monkeypatch.setattr(run_store, "_version", lambda _, found=version: found)
        run_store._surroundings.cache_clear()
        keys.add(run_key(1))
    run_store._surroundings.cache_clear()
    assert len(keys) == 2


def test_publishing_removes_only_what_was_used(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "runs"
    other = RunStore(folder, resumes=True)
    for key in ("found", "other"):
        other.put(key, 1)
    store = RunStore(folder, resumes=True)
    store.put("made", 2)
    assert (store.get("found"), store.get("absent")) == (1, None)
    store.remove_used()
    assert [path.name for path in folder.iterdir()] == ["other.json.gz"]
    store.remove_used()  # what is gone is gone
    other.remove_used()
    assert not folder.exists()
