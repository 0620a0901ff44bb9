"""Compiled programs on disk, so that a second start neither traces nor compiles.

The one idea: an executable is found by everything that decides it, the code of this
package included, and is believed only if its digest is right. Whatever goes wrong
with a file or with the folder costs one warning and a compilation, never a start.

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

import jax
from jax.experimental import serialize_executable

import jserve_models

_LOG = logging.getLogger("jserve")
_MAGIC = b"jserve program 1\n"
_SUFFIX = ".program"
MAX_STORED_PROGRAMS = 512
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
    """Returns what decides a program besides its inputs and the caller's facts."""
    device = jax.devices()[0]
    return (
        _source_digest(),
        *(importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")),
        (device.platform, device.device_kind, device.client.platform_version),
        os.cpu_count(),
        *(os.environ.get(name) for name in _VARIABLES),
        *(repr(getattr(jax.config, name)) for name in _SETTINGS),
    )


class ProgramStore:
    """A folder of executables, one file a program; any thread may use it."""

    def __init__(self, folder: pathlib.Path, facts: object, *, is_writable: bool):
        """Opens the folder.

        Args:
          folder: where the files are.
          facts: what decides the programs and cannot be seen in the shapes they
            take, such as the model's config; told apart by their `repr`.
          is_writable: whether new programs are kept.

        Raises:
          UntrustedFolderError: if others could have put code there.
          OSError: if the folder, or this package's code, cannot be read.
        """
        make_private_folder(folder)
        self._folder = folder
        self._facts = repr((facts, _surroundings()))
        self._is_writable = is_writable
        self._lock = threading.Lock()
        self._has_warned = False

    def load(self, name: str, signature: object) -> StoredProgram | None:
        """Returns a program, or None if there is none, or none that is sound.

        Args:
          name: begins the file's name.
          signature: the shapes and options the program was made for, by `repr`.
        """
        key = self._key(signature)
        path = self._path(name, key)
        try:
            content = path.read_bytes()
            with contextlib.suppress(OSError):
                os.utime(path)  # what is used stays longest
            serialized, in_tree, out_tree = pickle.loads(_payload(content, key))
            return StoredProgram(
                compiled=serialize_executable.deserialize_and_load(
                    serialized, in_tree, out_tree
                ),
                executable_bytes=len(content),
            )
        except FileNotFoundError:
            return None
        except Exception as error:  # of the disk, the pickle, or the compiler
            self._warn("stored program %s is not used: %s", path.name, error)
            return None

    def save(
        self, name: str, signature: object, compiled: jax.stages.Compiled
    ) -> int | None:
        """Keeps a program; returns the size of its file, None if it was not kept."""
        if not self._is_writable:
            return None
        key = self._key(signature)
        path = self._path(name, key)
        try:
            payload = pickle.dumps(serialize_executable.serialize(compiled))
            content = _MAGIC + _digest(key, payload) + payload
            self._write(path, content)
        except Exception as error:  # of the disk, or of a backend that cannot
            self._is_writable = False
            self._warn("compiled programs are not stored: %s", error)
            return None
        return len(content)

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
            if num_left > MAX_STORED_PROGRAMS or left_bytes > MAX_STORED_BYTES:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _key(self, signature: object) -> str:
        text = f"{self._facts}\n{signature!r}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _path(self, name: str, key: str) -> pathlib.Path:
        return self._folder / f"{name}-{key[:32]}{_SUFFIX}"

    def _write(self, path: pathlib.Path, content: bytes) -> None:
        """Writes beside its place and renames: a reader finds all of it or nothing."""
        handle, draft = tempfile.mkstemp(dir=self._folder, prefix=".draft.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(draft, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft)
            raise

    def _warn(self, message: str, *args: object) -> None:
        with self._lock:
            if self._has_warned:
                return
            self._has_warned = True
        _LOG.warning(message, *args)


def _digest(key: str, payload: bytes) -> bytes:
    """Returns 32 bytes that only this program's whole pickle has."""
    return hashlib.sha256(key.encode() + payload).digest()


def _payload(content: bytes, key: str) -> bytes:
    """Returns the pickle of a file.

    Raises:
      ValueError: if the file is not whole, or not the program that `key` stands for.
    """
    start = len(_MAGIC) + hashlib.sha256().digest_size
    payload = content[start:]
    if content[:start] != _MAGIC + _digest(key, payload):
        raise ValueError("it is broken, or another program's")
    return payload
