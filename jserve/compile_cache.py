"""Where compiled programs outlive the process, and all that can be wrong with it.

The one idea: a cache is never worth a failed start. A folder that cannot be made,
that others may write to, that is full or holds broken entries costs one warning;
then the server compiles as if it had none.

Compiled programs are code for one version of JAX, one kind of device and one host
CPU, so each combination has a folder of its own. In it are whole executables of steps
(`programs`), JAX's persistent cache (`xla`: all else, and steps where no executables
can be kept), and whatever else belongs to the device.
"""

import contextlib
import dataclasses
import errno
import glob
import hashlib
import logging
import os
import pathlib
import platform
import warnings
import zlib

import jax
from jax.experimental.compilation_cache import compilation_cache

from jserve.program_store import ProgramStore, make_private_folder

_LOG = logging.getLogger("jserve")
_PROBE_BYTES = 2**20  # a disk with less room than one program is full
_ZLIB_MAGIC = b"\x78"
_NEVER_S = 1e9  # no compilation takes so long, so none is written


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileCache:
    """The cache of one JAX, device kind and host CPU.

    Attributes:
      folder: where it is.
      is_writable: whether anything new can be kept.
    """

    folder: pathlib.Path
    is_writable: bool

    def program_store(self) -> ProgramStore | None:
        """Returns the store of programs, or None with a warning."""
        try:
            return ProgramStore(self.folder / "programs", is_writable=self.is_writable)
        except OSError as error:
            _LOG.warning("no store of compiled programs: %s", error)
            return None


def open_compile_cache(compile_cache_dir: str) -> CompileCache | None:
    """Opens the cache and turns JAX's persistent cache on; never raises.

    Args:
      compile_cache_dir: the folder of all caches; "" for none. Trusted: who can
        write to it can run code here.

    Returns:
      The cache; None if there is to be none or if it cannot be used at all.
    """
    if not compile_cache_dir:
        return None
    try:
        folder = pathlib.Path(compile_cache_dir).expanduser() / _device_key()
        make_private_folder(folder)
        xla_folder = folder / "xla"
        make_private_folder(xla_folder)
        problem = _write_problem(folder)
        _drop_broken_entries(xla_folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home for "~"
        _LOG.warning("no compile cache: %s", error)
        return None
    if problem is not None:
        _LOG.warning("compiled programs are not kept in %s: %s", folder, problem)
    _use_persistent_cache(xla_folder, is_writable=problem is None)
    return CompileCache(folder=folder, is_writable=problem is None)


def forget_module(name: str) -> None:
    """Takes a module out of JAX's persistent cache: it will be compiled anew.

    JAX can be told not to look only for all threads at once, and not again.

    Args:
      name: the module's, such as "jit_step".
    """
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    if not folder:
        return
    with contextlib.suppress(OSError):
        for path in pathlib.Path(folder).glob(f"{glob.escape(name)}-*"):
            with contextlib.suppress(OSError):
                path.unlink()


def _use_persistent_cache(folder: pathlib.Path, *, is_writable: bool) -> None:
    """Makes JAX keep every program in `folder`, whatever its size."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) != str(folder):
        compilation_cache.reset_cache()  # it holds on to the first folder it had
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 0 if is_writable else _NEVER_S
    )
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A disk that fills up meanwhile: JAX would warn for each program. The store
    # beside it says so once.
    warnings.filterwarnings(
        "ignore", message="Error writing persistent compilation cache entry"
    )


def _write_problem(folder: pathlib.Path) -> OSError | None:
    """Returns why nothing can be written to `folder`; None if it can be."""
    probe = folder / f".probe.{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return None


def _drop_broken_entries(folder: pathlib.Path) -> None:
    """Deletes entries of JAX's cache that cannot be unpacked, with one warning.

    JAX would warn of each at every start and never write it anew.
    """
    broken = []
    for path in folder.glob("*-cache"):
        try:
            content = path.read_bytes()
            # Other entries are zstandard's, which notices by itself.
            if not content or content.startswith(_ZLIB_MAGIC):
                zlib.decompress(content)
        except zlib.error:
            broken.append(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EISDIR):
                raise
    for path in broken:
        with contextlib.suppress(OSError):
            path.unlink()
    if broken:
        _LOG.warning(
            "%d broken entries of the compile cache are compiled anew, such as %s",
            len(broken),
            broken[0].name,
        )


def _device_key() -> str:
    """Returns the name of this JAX, device kind and host CPU."""
    device = jax.devices()[0]
    host = f"{platform.machine()}-{_cpu()}"
    key = f"{jax.__version__}-{device.platform}-{device.device_kind}-{host}"
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in key)


def _cpu() -> str:
    """Returns the host CPU's model, and a digest of what it can do.

    One model may show fewer instructions under another hypervisor.
    """
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    facts: dict[str, str] = {}
    for row in text.splitlines():
        name, _, value = row.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = facts.get("flags") or facts.get("Features") or ""
    digest = hashlib.sha256(flags.encode()).hexdigest()[:8]
    return f"{facts.get('model name') or platform.processor()}-{digest}"
