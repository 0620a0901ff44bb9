"""Where compiled programs outlive the process.

A folder that cannot be made, that others may write to, or that is full costs one
warning; then the server compiles as if there were no cache.

Compiled programs are code for one version of JAX, one kind of device and one host CPU,
so each combination has a folder. It holds executables of steps (`programs`), JAX's
persistent cache (`xla`: everything else, and steps where no executables can be kept)
and whatever else belongs to the machine.
"""

import contextlib
import dataclasses
import glob
import logging
import os
import pathlib
import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache

from jserve.machine import machine_digest
from jserve.private_folder import make_private_folder
from jserve.program_store import ProgramStore

_LOG = logging.getLogger("jserve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileCache:
    """The cache of one machine.

    Attributes:
      folder: Where it is.
      store: Holds the executables of steps.
    """

    folder: pathlib.Path
    store: ProgramStore


def open_compile_cache(compile_cache_dir: str) -> CompileCache | None:
    """Opens the cache and turns JAX's persistent cache on; never raises.

    Args:
      compile_cache_dir: the folder of all caches; "" for none. Trusted: a user who
        can write to it can run code here.

    Returns:
      The cache; None if there is to be none or if it cannot be used at all.
    """
    if not compile_cache_dir:
        return None
    try:
        folder = pathlib.Path(compile_cache_dir).expanduser() / machine_name()
        make_private_folder(folder)
        is_writable = os.access(folder, os.W_OK)
        store = ProgramStore(folder / "programs", is_writable=is_writable)
        make_private_folder(folder / "xla")
    except (OSError, RuntimeError) as error:  # RuntimeError: no home for "~"
        _LOG.warning("no compile cache: %s", error)
        return None
    if not is_writable:
        _LOG.warning("compiled programs are not kept in %s: it is read-only", folder)
    _use_persistent_cache(folder / "xla")
    return CompileCache(folder=folder, store=store)


def machine_name() -> str:
    """Returns the name of this machine's folder."""
    return f"{jax.__version__}-{jax.devices()[0].platform}-{machine_digest()}"


def forget_module(name: str) -> None:
    """Takes a module out of JAX's persistent cache: it will be compiled again.

    JAX can be told not to look only for all threads at once, and only at the start.

    Args:
      name: the module's, such as "jit_step".
    """
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    if folder:
        with contextlib.suppress(OSError):
            for path in pathlib.Path(folder).glob(f"{glob.escape(name)}-*"):
                path.unlink()


def _use_persistent_cache(folder: pathlib.Path) -> None:
    """Makes JAX keep every program in `folder`, whatever its size."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) != str(folder):
        compilation_cache.reset_cache()  # it holds on to the first folder it had
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # JAX would warn of each entry, at each start; the store says once what is wrong
    # with the disk, and forgets the entries of steps that it compiles.
    warnings.filterwarnings(
        "ignore", message="Error (reading|writing) persistent compilation cache entry"
    )
