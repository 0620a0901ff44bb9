"""Which of several processes this one is, by flags or by what started it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jserve.config import check_range

_PORT = 8482  # of the coordinator, where only its host is known
_TIMEOUT_S = 300  # for all processes to meet
_SLURM = (
    *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"),
    "SLURM_NTASKS",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """Several processes that share a model, each with its part of the devices.

    The first one plans and serves; the others need the same flags. Without these, the
    environment variables of a LeaderWorkerSet, of a TPU pod on GKE, or of srun say
    which process this is, if there are several.

    Attributes:
      coordinator: Address, as HOST:PORT, of the first process, at which all of them
        meet; "auto" lets JAX find out, as on TPU pods outside of GKE.
      num_processes: Number of processes; 0 goes by environment.
      process_id: Which of them this is, from 0; -1 goes by environment.
    """

    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1

    def __post_init__(self) -> None:
        given = self.coordinator != "", self.num_processes != 0, self.process_id != -1
        if self.coordinator == "auto" or not any(given):
            return
        if not all(given):
            raise ValueError(
                f"coordinator={self.coordinator!r}, num_processes={self.num_processes} "
                f"and process_id={self.process_id} go together: all three are needed"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"coordinator={self.coordinator!r} is not HOST:PORT")
        check_range("num_processes", self.num_processes, 1, 4096)
        check_range("process_id", self.process_id, 0, self.num_processes - 1)


def find_cluster(
    config: ProcessConfig, environ: Mapping[str, str]
) -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize`; None for one process.

    Raises:
      ValueError: If a variable of the environment is missing, or is not a number.
    """
    if config.coordinator == "auto":
        return {}
    if config.coordinator:
        found = (config.coordinator, config.num_processes, config.process_id)
    elif "LWS_LEADER_ADDRESS" in environ:
        found = (
            f"{environ['LWS_LEADER_ADDRESS']}:{_PORT}",
            _number(environ, "LWS_GROUP_SIZE"),
            _number(environ, "LWS_WORKER_INDEX"),
        )
    elif "TPU_WORKER_ID" in environ:
        hosts = environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
        worker = _number(environ, "TPU_WORKER_ID")
        found = f"{hosts[0]}:{_PORT}", len(hosts), worker
    elif all(name in environ for name in _SLURM):
        # JAX reads the list of nodes, and gives each process of a node a GPU.
        is_one = environ["SLURM_NTASKS"] == "1"
        return None if is_one else {"cluster_detection_method": "slurm"}
    else:
        return None
    names = ("coordinator_address", "num_processes", "process_id")
    return dict(zip(names, found, strict=True)) if found[1] > 1 else None


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    if not value.isdigit():
        raise ValueError(f"{name}={value!r} in the environment is not a number")
    return int(value)


def join_cluster(arguments: Mapping[str, Any]) -> int:
    """Meets the other processes; returns which one this is.

    Raises:
      ValueError: If they do not meet.
    """
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=_TIMEOUT_S, shutdown_timeout_seconds=10
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the processes did not meet: {error}") from None
    return jax.process_index()
