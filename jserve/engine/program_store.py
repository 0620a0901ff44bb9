"""Compiled programs on disk, so that a second start neither traces nor compiles.

A program is named by a digest of all that decides it: the code of this package that a
step consists of, the machine, and the caller's signature. If a file is damaged there is
a warning, it is deleted, and the program is compiled. Files are pickles of machine
code, so only the owner may write to the folder (`compile_cache.make_private_folder`).
"""

import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import pickle

import jax
from jax.experimental import serialize_executable

import jserve_models
from jserve.engine.machine import machine_digest

_LOG = logging.getLogger("jserve")
MAX_STORED_BYTES = 2**30
# The files of this folder that decide a program, besides jserve_models.
_SOURCES = ("packing.py", "sampling.py", "programs.py", "program_store.py")


@functools.cache
def _source_digest() -> str:
    """Returns a digest of the code that decides what a step computes."""
    here = pathlib.Path(__file__).parent
    models = sorted(pathlib.Path(jserve_models.__file__).parent.rglob("*.py"))
    paths = [*(here / name for name in _SOURCES), *models]
    return _digest(*((path.name, path.read_bytes()) for path in paths))


class ProgramStore:
    """A folder of executables; any thread may use it.

    New programs are kept, and broken files deleted, only if it `is_writable`.
    """

    def __init__(self, folder: pathlib.Path, *, is_writable: bool):
        self.is_writable = is_writable
        self.folder = folder
        self._key = (machine_digest(), _source_digest())
        self._has_warned = False

    def load(
        self, name: str, signature: object
    ) -> tuple[jax.stages.Compiled, int] | None:
        """Returns a program and the size of its file; None without a file that loads.

        `signature` is all that decides the program and is not code, by its `repr`.
        """
        path = self._path(name, signature)
        try:
            content = path.read_bytes()
            payload = content[hashlib.sha256().digest_size :]
            if content != _sealed(path, payload):
                raise ValueError("it is broken, or another program's")
            with contextlib.suppress(OSError):
                os.utime(path)  # files used last are kept longest
            parts = pickle.loads(payload)
            return serialize_executable.deserialize_and_load(*parts), len(content)
        except FileNotFoundError:
            return None
        except Exception as error:  # of the disk, the pickle, or the compiler
            self._warn("stored program %s is not used: %s", path.name, error)
            if self.is_writable:
                with contextlib.suppress(OSError):
                    path.unlink()
            return None

    def save(
        self, name: str, signature: object, compiled: jax.stages.Compiled
    ) -> int | None:
        """Keeps a program; returns the size of its file, None if it was not kept.

        It is written beside its place and renamed: a reader finds all of it or none.
        A program from JAX's cache must not be given here: on CPU it would be serialized
        without its functions.
        """
        if not self.is_writable:
            return None
        path = self._path(name, signature)
        try:
            payload = pickle.dumps(serialize_executable.serialize(compiled))
            content = _sealed(path, payload)
            draft = path.with_suffix(f".draft{os.getpid()}")
            try:
                draft.touch(0o600)
                draft.write_bytes(content)
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
        except Exception as error:  # of the disk, or of a backend that cannot
            self.is_writable = False
            self._warn("compiled programs are not stored: %s", error)
            return None
        return len(content)

    def prune(self) -> None:
        """Deletes the files longest unused, until what is left is within bounds."""
        with contextlib.suppress(OSError):  # another process deletes as well
            facts = [(path.stat(), path) for path in self.folder.iterdir()]
            facts.sort(key=lambda one: -one[0].st_mtime)
            total_bytes = 0
            for fact, path in facts:
                total_bytes += fact.st_size
                if total_bytes > MAX_STORED_BYTES:
                    path.unlink()

    def _path(self, name: str, signature: object) -> pathlib.Path:
        return self.folder / f"{name}-{_digest(*self._key, signature)}.program"

    def _warn(self, message: str, *args: object) -> None:
        if not self._has_warned:
            self._has_warned = True
            _LOG.warning(message, *args)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _sealed(path: pathlib.Path, payload: bytes) -> bytes:
    """Returns the file of this name: a digest of name and payload, and the payload."""
    return hashlib.sha256(path.name.encode() + payload).digest() + payload
