"""Serves a language model over HTTP, with OpenAI's API, under SLOs.

  jserve --model=tiny --port=8000
  jserve --model=ORG/NAME                           (of the Hugging Face hub)
  jserve --model=/models/my-llama --policy=qoserve --service_classes=classes.json
  jserve --model=/models/my-llama --warmup_only      (fills the compile cache)

The port is bound at once, and refuses connections until the model is loaded. /health
reports "ready", with status 200, when the few buckets are compiled in which every step
can run; from then on requests are served. Finer buckets are added meanwhile, and
/health reports "warm" when none is left: measure only then. Start-up logs its progress
every few seconds. On SIGTERM the server finishes running requests, then exits with 0.
If the engine fails, it exits with 70: start it again. Of several processes that share a
model all exit with 70 if one of them is lost.
"""

import dataclasses
import gc
import glob
import logging
import os
import pathlib
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from jserve.config import EngineConfig, check_predictor, check_writable
from jserve.engine.cluster import ProcessConfig, find_cluster, join_cluster
from jserve.engine.memory import claim_memory
from jserve.flags import define_config_flags, define_engine_flags
from jserve.program import ProgramError, run_program
from jserve.progress import Progress
from jserve.server_config import ServerConfig
from jserve_models.config import NAMED
from jserve_models.hf import read_config
from jserve_models.hf.folders import find_folder

if TYPE_CHECKING:
    from jserve.engine.followers import Leader

_LOG = logging.getLogger("jserve")
_DEVICE_FILES = {  # one pattern for each kind of driver
    "gpu": ("/dev/nvidia[0-9]*", "/dev/dxg"),
    "tpu": ("/dev/accel*", "/dev/vfio/[0-9]*"),
}
_ENGINE_CONFIG = define_engine_flags()
_SERVER_CONFIG = define_config_flags(ServerConfig, group="Server")
_PROCESS_CONFIG = define_config_flags(ProcessConfig, group="Several processes")
_WARMUP_ONLY = flags.DEFINE_bool(
    "warmup_only",
    False,
    "Compile and time all programs of a server with these flags, store them in "
    "compile_cache_dir, print the times, and exit without opening a port.",
    module_name="Buckets and compilation",
)


def _folder(model: str) -> pathlib.Path | None:
    """Returns the folder that `model` names, or None for a named size."""
    folder = None if model in NAMED else find_folder(model)
    if folder is not None:
        read_config(folder)  # refuses what cannot be served
        return folder
    if os.sep in model or model.startswith("~"):
        raise ValueError(f"model={model}: no such folder")
    return None


def _check_device(attention: str) -> None:
    """Refuses a kernel for a device that this machine does not have.

    Raises:
      ValueError: If neither the machine nor JAX_PLATFORMS names such a device.
    """
    files = _DEVICE_FILES.get(attention, ())
    is_elsewhere = os.environ.get("JAX_PLATFORMS", "cpu") != "cpu"
    if files and not is_elsewhere and not any(map(glob.glob, files)):
        raise ValueError(
            f"attention={attention!r} needs a {attention.upper()}, and this machine "
            f"has none: no {' and no '.join(files)}"
        )


def _check(engine: EngineConfig, server: ServerConfig) -> None:
    """Refuses invalid names and files before any slow work.

    Raises:
      ValueError: Naming flag and value.
    """
    from jserve.server.api_keys import load_api_keys
    from jserve.server.logs import set_up_logs
    from jserve.server.slo_input import load_service_classes
    from jserve.server.tracing import check_tracing
    from jserve_sched.policies.registry import make_policy

    set_up_logs(server)
    make_policy(engine.policy)
    load_service_classes(server)
    load_api_keys(server)
    check_tracing(server.otlp_endpoint)
    check_predictor(engine.predictor)
    if _WARMUP_ONLY.value:
        if not engine.compile_cache_dir:
            raise ValueError("--warmup_only needs a compile_cache_dir to fill")
        folder = pathlib.Path(engine.compile_cache_dir).expanduser()
        check_writable("compile_cache_dir", folder)


def _join(cluster: Mapping[str, Any], progress: Progress) -> "Leader":
    """Meets the other processes; one that is not the first follows, and ends here.

    Raises:
      ProgramError: If they do not meet.
    """
    progress.begin("meeting the other processes")
    try:
        if join_cluster(cluster):
            from jserve.following import follow

            progress.close()
            follow()
        from jserve.engine.followers import meet_followers

        return meet_followers()
    except (ValueError, OSError) as error:
        raise ProgramError(str(error)) from error


def _warm_up(config: EngineConfig, leader: "Leader | None" = None) -> None:
    """Fills the caches, and says how far it is.

    Raises:
      ProgramError: If a flag is invalid, or something could not be stored.
    """
    progress = Progress(
        lambda text: print(f"jserve: {text}", file=sys.stderr, flush=True)
    )
    try:
        progress.begin("loading JAX")
        from jserve.build import build_loop
        from jserve.engine.warm_up import start_up_table

        config = dataclasses.replace(config, step_log=None)
        warm_up = build_loop(config, progress=progress, leader=leader).warm_up
        warm_up.run()
        print(start_up_table(warm_up.start_up()), flush=True)
        warm_up.check_kept()
    except (ValueError, OSError) as error:
        raise ProgramError(str(error)) from error
    finally:
        progress.close()


def main(argv: Sequence[str]) -> int:
    """Serves until a signal, or until the engine fails; returns the exit status."""
    del argv
    progress = Progress(_LOG.info)  # the times of start-up count from here
    logging.getLogger("jserve").setLevel(logging.INFO)
    logging.getLogger("jax").setLevel(logging.WARNING)
    # NumPy's threads would compete with XLA's for the cores.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    try:
        engine_config = _ENGINE_CONFIG()
        server_config = _SERVER_CONFIG()
        cluster = find_cluster(_PROCESS_CONFIG(), os.environ)
        folder = _folder(engine_config.model)
        _check_device(engine_config.attention)
        _check(engine_config, server_config)
    except (OSError, ValueError) as error:
        raise ProgramError(str(error)) from error

    # From here on JAX is imported, which takes seconds.
    claim_memory(os.environ, engine_config.device_memory_fraction)
    leader = None if cluster is None else _join(cluster, progress)
    if leader is None:
        return _run(engine_config, server_config, folder, progress, leader)
    from jserve.engine.followers import LOST, leave

    # However it ends: JAX would first wait for processes that wait for this one.
    status = LOST
    try:
        status = _run(engine_config, server_config, folder, progress, leader)
    except ProgramError as error:
        _LOG.error("%s", error)
        status = 1
    except SystemExit:  # by SIGTERM
        status = 0
    except BaseException:
        _LOG.exception("the first process failed")
    if status == 0:
        leader.stop()
    leave(LOST if leader.lost else status)


def _run(
    engine_config: EngineConfig,
    server_config: ServerConfig,
    folder: pathlib.Path | None,
    progress: Progress,
    leader: "Leader | None",
) -> int:
    """Loads a model, and serves or only warms up; returns the exit status.

    Raises:
      ProgramError: If a flag is invalid, or the address is in use.
    """
    if _WARMUP_ONLY.value:
        _warm_up(engine_config, leader)
        return 0
    gc.disable()  # saves a fifth of that; the loop switches it on again
    # Until requests are served, SIGTERM just ends the process.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    from jserve.server.app import build_app
    from jserve.server.errors import printable
    from jserve.server.serving import bind, serve, url_of
    from jserve.server.slo_input import load_service_classes
    from jserve.text.tokenizer import load_tokenizer

    try:
        listener = bind(server_config)
    except OSError as error:
        raise ProgramError(
            f"cannot listen on {server_config.address}: {error.strerror or error}"
        ) from error
    with listener:
        try:
            tokenizer = load_tokenizer(
                folder, server_config.parse_special, server_config.generation_config
            )
            classes = load_service_classes(server_config)
            progress.begin("loading JAX")
            from jserve.build import build_loop

            loop = build_loop(engine_config, classes.classes, progress, leader)
            app = build_app(loop, tokenizer, server_config)
        except (ValueError, OSError) as error:
            progress.close()
            raise ProgramError(str(error)) from error
        if leader is not None:
            leader.on_lost = loop.fail
        name, *_ = server_config.served_model_name or (loop.model_name,)
        url = url_of(listener, is_tls=server_config.tls_cert is not None)
        print(
            f"jserve: {url} serves {printable(name)} "
            f"(policy {engine_config.policy}); see /health: ready, then warm",
            flush=True,
        )
        return serve(app, loop, server_config, listener)


def run() -> None:
    """Entry point of the command `jserve`."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
