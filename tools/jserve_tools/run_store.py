"""Finished runs on disk, so that an interrupted sweep goes on where it stopped.

The one idea: a run is known by a hash of everything that decides its numbers, the
code included, so what is found again is what would be measured again. Whoever
finishes a run writes it at once and whole; whoever has published the report of a
sweep removes that sweep's runs, and no others.
"""

import contextlib
import dataclasses
import enum
import functools
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import pickle
import platform
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jserve_tools.documents import write_whole

_KEY_DIGITS = 20
_SUFFIX = ".json.gz"
_PACKAGES = ("jserve_sched", "jserve_models", "jserve", "jserve_tools")
_PLATFORM_VARIABLES = ("CUDA_VISIBLE_DEVICES", "JAX_", "XLA_")
# Larger files are known by size and time of change.
_MOST_BYTES_READ = 64 * 2**20


class RunStore:
    """A folder of finished runs, one compressed JSON file each.

    Attributes:
      num_found: times that something asked for was there.
    """

    def __init__(self, folder: pathlib.Path, *, resumes: bool):
        """Opens a folder, which need not exist.

        Args:
          folder: where the files are.
          resumes: whether earlier runs are used; if not, they are removed.
        """
        self.num_found = 0
        self._folder = folder
        self._used: set[str] = set()
        if not resumes:
            _remove(folder, folder.glob(f"*{_SUFFIX}"))

    def _path(self, key: str) -> pathlib.Path:
        return self._folder / f"{key}{_SUFFIX}"

    def get(self, key: str) -> Any:
        """Returns what was put under a key; None if nothing was.

        Raises:
          ValueError: if the file is damaged.
        """
        path = self._path(key)
        try:
            content = json.loads(gzip.decompress(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise ValueError(f"{path} is no finished run, remove it: {error}") from None
        self.num_found += 1
        self._used.add(key)
        return content

    def put(self, key: str, content: Any) -> None:
        """Writes what JSON can hold under a key."""
        text = json.dumps(content, allow_nan=False, default=_plain_number).encode()
        # Without a time in it, the same run is the same file.
        write_whole(self._path(key), gzip.compress(text, mtime=0))
        self._used.add(key)

    def remove_used(self) -> None:
        """Removes the runs that were found or put, and the folder if it is empty."""
        _remove(self._folder, map(self._path, self._used))


def _remove(folder: pathlib.Path, paths: Iterable[pathlib.Path]) -> None:
    """Removes files of a folder, and the folder if it is empty then."""
    for path in paths:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _plain_number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a finished run")


def run_key(*parts: Any) -> str:
    """Returns the key of a run that these values decide, with the code and machine.

    Values are dataclasses, mappings, sequences, arrays, paths (for the content behind
    them) and plain values; others count by their pickled form.
    """
    digest = hashlib.sha256()
    for part in (_surroundings(), *parts):
        _feed(digest, part)
    return digest.hexdigest()[:_KEY_DIGITS]


def _feed(digest: Any, value: Any) -> None:
    """Adds a value to a hash, so that different values add different bytes."""
    if isinstance(value, float):
        digest.update(f"float {float(value)!r};".encode())  # NumPy's are floats too
    elif value is None or isinstance(value, (bool, int, str, enum.Enum)):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    elif isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype.str} {value.shape};".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, pathlib.PurePath):
        _feed(digest, _content(pathlib.Path(value)))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        digest.update(f"{type(value).__qualname__}(".encode())
        for field in dataclasses.fields(value):
            _feed(digest, field.name)
            _feed(digest, getattr(value, field.name))
        digest.update(b")")
    elif isinstance(value, Mapping):
        digest.update(b"{")
        for name, item in value.items():
            _feed(digest, name)
            _feed(digest, item)
        digest.update(b"}")
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        digest.update(b"[")
        for item in value:
            _feed(digest, item)
        digest.update(b"]")
    else:
        digest.update(pickle.dumps(value))


def _content(path: pathlib.Path) -> dict[str, Any]:
    """Returns what tells a file's or a folder's content from another."""
    path = path.expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found: dict[str, Any] = {"path": str(path)}
    for file in files:
        if not file.is_file():
            continue
        state = file.stat()
        if state.st_size <= _MOST_BYTES_READ:
            found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest()
        else:
            found[str(file)] = [state.st_size, state.st_mtime_ns]
    return found


def _version(package: str) -> str:
    """Returns a package's version; "" where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def _surroundings() -> dict[str, Any]:
    """Returns what decides numbers beside what was asked for: code and machine."""
    code = hashlib.sha256()
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None and spec.origin is not None
        folder = pathlib.Path(spec.origin).parent
        for file in sorted(folder.rglob("*.py")):
            code.update(f"{package}/{file.relative_to(folder)};".encode())
            code.update(file.read_bytes())
    return {
        "code": code.hexdigest(),
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
        "numpy": np.__version__,
        "numba": _version("numba"),  # a search's speed, and so a server's plans
        "host": platform.node(),
        "num_cpus": os.cpu_count(),
        "platform": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_PLATFORM_VARIABLES)
        },
    }
