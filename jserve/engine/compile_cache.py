"""The folder that keeps compiled programs between starts; a count of compilations.

Compiled programs are code for one version of JAX, one kind of device and one host CPU,
so each combination has a folder: executables of steps (`programs`), JAX's persistent
cache (`xla`, for other programs, and for steps that the store cannot keep), and step
times.
"""

import contextlib
import glob
import logging
import os
import pathlib
import stat
import threading
import warnings
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from jserve.engine.machine import machine_digest
from jserve.engine.program_store import ProgramStore

_LOG = logging.getLogger("jserve")
_FOLDER_SETTING = "jax_compilation_cache_dir"


def make_private_folder(folder: pathlib.Path) -> None:
    """Makes a folder for its owner alone, or checks that one that is there is safe.

    Raises:
      OSError: If it cannot be made, or others own it or may write to it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.stat()
    fault = ""
    if facts.st_uid not in (os.geteuid(), 0):
        fault = f"belongs to user {facts.st_uid}, not to {os.geteuid()}"
    elif facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        fault = f"may be written by others (mode {facts.st_mode & 0o777:o})"
    if fault:
        raise PermissionError(f"{folder} {fault}: code is not loaded from it")


def open_compile_cache(compile_cache_dir: str) -> ProgramStore | None:
    """Opens this machine's cache and turns JAX's persistent cache on; never raises.

    Args:
      compile_cache_dir: The folder of all caches; "" for none.

    Returns:
      The store, in the folder of this machine; None if none can be used.
    """
    if not compile_cache_dir:
        return None
    try:
        folder = pathlib.Path(compile_cache_dir).expanduser() / machine_name()
        for one in (folder, folder / "programs", folder / "xla"):
            make_private_folder(one)
        is_writable = os.access(folder, os.W_OK)
        store = ProgramStore(folder / "programs", is_writable=is_writable)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home for "~"
        _LOG.warning("no compile cache: %s", error)
        return None
    if not is_writable:
        _LOG.warning("compiled programs are not kept in %s: it is read-only", folder)
    if jax.config.values[_FOLDER_SETTING] != str(folder / "xla"):
        compilation_cache.reset_cache()  # or else it keeps using its first folder
    jax.config.update(_FOLDER_SETTING, str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # JAX would warn about each entry at each start. The store warns once if the disk
    # fails, and deletes the entries of steps that it compiles.
    warnings.filterwarnings(
        "ignore", message="Error (reading|writing) persistent compilation cache entry"
    )
    return store


def machine_name() -> str:
    """Returns the name of this machine's folder."""
    return f"{jax.__version__}-{jax.devices()[0].platform}-{machine_digest()}"


def forget_module(name: str) -> None:
    """Takes a module, such as "jit_step", out of JAX's persistent cache.

    JAX's setting not to look there holds for all threads, and only from the start.
    """
    if folder := jax.config.values[_FOLDER_SETTING]:
        with contextlib.suppress(OSError):
            for path in pathlib.Path(folder).glob(f"{glob.escape(name)}-*"):
                path.unlink()


class CompileLog:
    """Counts programs made executable, found in the persistent cache or not.

    Listeners cannot be removed, so the process has one count.
    """

    def __init__(self) -> None:
        self.num_compiles = 0
        self._lock = threading.Lock()
        self._here = threading.local()
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)

    @property
    def num_cache_hits_here(self) -> int:
        """Number of programs that the calling thread found in the persistent cache."""
        return getattr(self._here, "num_hits", 0)

    def _on_duration(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            with self._lock:
                self.num_compiles += 1

    def _on_event(self, event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            self._here.num_hits = self.num_cache_hits_here + 1


COMPILE_LOG = CompileLog()
