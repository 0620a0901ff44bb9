"""Compiled programs on disk, so that a second start neither traces nor compiles.

The one idea: there are two ways to an executable. The first needs no trace: a digest
of all that decides the program, the code of this package included, leads to an index
file that names the executable. The second is for code that was edited: an executable
is named by what the compiler was given, so an edit that changes no program costs a
trace and a new index file, not a compilation.

A file is believed only if its digest is right. Whatever goes wrong with a file or
with the folder costs one warning and a compilation, never a start; a file that is no
good is deleted.

A stored program is a pickle and machine code: whoever can write to the folder can
run code in this process. So the folder is made for its owner alone, and one that
belongs to another user (root apart), or that others may write to, is refused.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import pickle
import stat
import tempfile
import threading
from collections.abc import Callable
from typing import TypeVar

import jax
from jax.experimental import serialize_executable

import jserve_models
from jserve.cpus import num_cpus

_T = TypeVar("_T")
_LOG = logging.getLogger("jserve")
_MAGIC = b"jserve program 1\n"
_HEAD_BYTES = len(_MAGIC) + hashlib.sha256().digest_size
_PROGRAM, _INDEX = ".program", ".index"
MAX_STORED_FILES = 1024  # two a program
MAX_STORED_BYTES = 2**30
# What decides a program besides jserve_models: this folder's part in the step.
_SOURCES = ("packing.py", "sampling.py", "programs.py", "program_store.py")
# Variables and settings that change what the compiler makes of the same step.
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_SETTINGS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)


class UntrustedFolderError(OSError):
    """A folder from which code would be loaded is not its user's alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredProgram:
    """A program that was found.

    Attributes:
      compiled: ready to run.
      executable_bytes: size of its file.
    """

    compiled: jax.stages.Compiled
    executable_bytes: int


def make_private_folder(folder: pathlib.Path) -> None:
    """Makes a folder for its owner alone, or checks that one that is there is safe.

    Raises:
      UntrustedFolderError: if it belongs to another user than this one or root, or
        if others may write to it.
      OSError: if it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.stat()
    if facts.st_uid not in (os.geteuid(), 0):
        raise UntrustedFolderError(
            f"{folder} belongs to user {facts.st_uid}, not to {os.geteuid()}: code is "
            "not loaded from it"
        )
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedFolderError(
            f"{folder} may be written by others (mode {facts.st_mode & 0o777:o}): code "
            "is not loaded from it; chmod go-w makes it safe"
        )


@functools.cache
def _source_digest() -> str:
    """Returns a digest of the code that decides what a step computes."""
    here = pathlib.Path(__file__).parent
    models = pathlib.Path(jserve_models.__file__).parent
    digest = hashlib.sha256()
    for path in (*(here / name for name in _SOURCES), *sorted(models.rglob("*.py"))):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _surroundings() -> tuple[object, ...]:
    """Returns what the compiler makes a program with."""
    device = jax.devices()[0]
    return (
        *(importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")),
        (device.platform, device.device_kind, device.client.platform_version),
        num_cpus(),
        *(os.environ.get(name) for name in _VARIABLES),
        *(repr(getattr(jax.config, name)) for name in _SETTINGS),
    )


class ProgramStore:
    """A folder of executables and of index files; any thread may use it."""

    def __init__(self, folder: pathlib.Path, *, is_writable: bool):
        """Opens the folder.

        Args:
          folder: where the files are.
          is_writable: whether new programs are kept, and broken files deleted.

        Raises:
          UntrustedFolderError: if others could have put code there.
          OSError: if the folder, or this package's code, cannot be read.
        """
        make_private_folder(folder)
        self._folder = folder
        self._surroundings = repr(_surroundings())
        self._source_digest = _source_digest()
        self._is_writable = is_writable
        self._lock = threading.Lock()
        self._has_warned = False

    @property
    def is_writable(self) -> bool:
        """Whether new programs are kept."""
        return self._is_writable

    def load(self, name: str, signature: object) -> StoredProgram | None:
        """Returns a program of this very code, or None if there is no sound one.

        Args:
          name: begins the file's name.
          signature: all that decides the program and is not code, by `repr`.
        """
        key = self._source_key(signature)
        program_key = self._read(self._path(name, key, _INDEX), key, bytes.decode)
        return None if program_key is None else self._load(name, program_key)

    def load_lowered(
        self, name: str, signature: object, text: str
    ) -> StoredProgram | None:
        """Returns the program the compiler would make, or None; `load` finds it next.

        Args:
          name: as in `load`.
          signature: as in `load`.
          text: what the compiler is given.
        """
        program_key = self._program_key(signature, text)
        stored = self._load(name, program_key)
        if stored is not None:
            self._point(name, signature, program_key)
        return stored

    def save(
        self, name: str, signature: object, text: str, compiled: jax.stages.Compiled
    ) -> int | None:
        """Keeps a program; returns the size of its file, None if it was not kept.

        Args:
          name: as in `load`.
          signature: as in `load`.
          text: as in `load_lowered`.
          compiled: what the compiler made of it just now. What JAX's cache gave back
            cannot be serialized again on CPU: it would load, and then miss its
            functions.
        """
        key = self._program_key(signature, text)

        def payload() -> bytes:
            return pickle.dumps(serialize_executable.serialize(compiled))

        size = self._write(self._path(name, key, _PROGRAM), key, payload)
        self._point(name, signature, key)
        return size

    def _load(self, name: str, key: str) -> StoredProgram | None:
        return self._read(self._path(name, key, _PROGRAM), key, _stored)

    def _point(self, name: str, signature: object, program_key: str) -> None:
        """Writes the index file that leads this code to a program."""
        key = self._source_key(signature)
        self._write(self._path(name, key, _INDEX), key, program_key.encode)

    def prune(self) -> None:
        """Deletes the files longest unused, until what is left is within bounds."""
        found = []
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                with contextlib.suppress(OSError):
                    facts = path.stat()
                    found.append((facts.st_mtime, facts.st_size, path))
        num_left, left_bytes = 0, 0
        for _, size, path in sorted(found, reverse=True):
            num_left, left_bytes = num_left + 1, left_bytes + size
            if num_left > MAX_STORED_FILES or left_bytes > MAX_STORED_BYTES:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _source_key(self, signature: object) -> str:
        return _key(self._surroundings, self._source_digest, repr(signature))

    def _program_key(self, signature: object, text: str) -> str:
        return _key(self._surroundings, text, repr(signature))

    def _path(self, name: str, key: str, suffix: str) -> pathlib.Path:
        return self._folder / f"{name}-{key[:32]}{suffix}"

    def _read(
        self, path: pathlib.Path, key: str, parse: Callable[[bytes], _T]
    ) -> _T | None:
        """Returns what is in a file; None if it is not there or no good."""
        try:
            content = path.read_bytes()
            with contextlib.suppress(OSError):
                os.utime(path)  # what is used stays longest
            return parse(_payload(content, key))
        except FileNotFoundError:
            return None
        except Exception as error:  # of the disk, the pickle, or the compiler
            self._warn("stored program %s is not used: %s", path.name, error)
            if self._is_writable:
                with contextlib.suppress(OSError):
                    path.unlink()
            return None

    def _write(
        self, path: pathlib.Path, key: str, payload: Callable[[], bytes]
    ) -> int | None:
        """Writes beside its place and renames: a reader finds all of it or nothing."""
        if not self._is_writable:
            return None
        try:
            content = payload()
            content = _MAGIC + _digest(key, content) + content
            handle, draft = tempfile.mkstemp(dir=self._folder, prefix=".draft.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                os.replace(draft, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(draft)
                raise
        except Exception as error:  # of the disk, or of a backend that cannot
            self._is_writable = False
            self._warn("compiled programs are not stored: %s", error)
            return None
        return len(content)

    def _warn(self, message: str, *args: object) -> None:
        with self._lock:
            if self._has_warned:
                return
            self._has_warned = True
        _LOG.warning(message, *args)


def _stored(payload: bytes) -> StoredProgram:
    return StoredProgram(
        compiled=serialize_executable.deserialize_and_load(*pickle.loads(payload)),
        executable_bytes=_HEAD_BYTES + len(payload),
    )


def _key(*parts: str) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _digest(key: str, payload: bytes) -> bytes:
    """Returns 32 bytes that only the whole payload of this key has."""
    return hashlib.sha256(key.encode() + payload).digest()


def _payload(content: bytes, key: str) -> bytes:
    """Returns what a file holds.

    Raises:
      ValueError: if the file is not whole, or not the one that `key` stands for.
    """
    payload = content[_HEAD_BYTES:]
    if content[:_HEAD_BYTES] != _MAGIC + _digest(key, payload):
        raise ValueError("it is broken, or another program's")
    return payload
