"""The accelerators that programs are compiled for ahead of time.

None of them need be there: a TPU is named by its topology, a GPU by XLA's
`GpuTargetConfigProto`.
"""

import dataclasses
from typing import Any

from jserve_sched.simulation.roofline import DEVICES, Device

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    # ptxas says what registers a Pallas kernel takes.
    "MOSAIC_GPU_DUMP_PTXAS": "1",
    # Several processes may compile for TPU at once, and none asks for a TPU's machine.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}
"""What a process that compiles for them must have set before it imports JAX."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What XLA asks of an NVIDIA GPU.

    Attributes:
      capability: Compute capability, major and minor.
      is_accelerated: Whether code for exactly this capability is made ("sm_90a").
      num_cores: Streaming multiprocessors.
      lanes: Float32 lanes of a multiprocessor.
      threads: Most threads on a multiprocessor.
      shared_kib: Shared memory of a multiprocessor; a block gets 1 KiB less.
      l2_mib: Second-level cache.
      clock_ghz: Boost clock.
    """

    capability: tuple[int, int]
    is_accelerated: bool
    num_cores: int
    lanes: int
    threads: int
    shared_kib: int
    l2_mib: int
    clock_ghz: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of device.

    Attributes:
      kind: Its name in full.
      figures: Its memory, bandwidth and arithmetic.
      device: Generation of a TPU, or the facts of a GPU.
    """

    kind: str
    figures: Device
    device: str | Card

    @property
    def platform(self) -> str:
        """Platform, as JAX names it."""
        return "tpu" if isinstance(self.device, str) else "gpu"


_HOPPER = Card(
    capability=(9, 0),
    is_accelerated=True,
    num_cores=132,
    lanes=128,
    threads=2048,
    shared_kib=228,
    l2_mib=50,
    clock_ghz=1.98,
)
_DEVICES: dict[str, tuple[str, str | Card]] = {
    "v5e": ("TPU v5e", "v5e"),
    "v6e": ("TPU v6e", "v6e"),
    "a100": (
        "NVIDIA A100-SXM4-80GB",
        Card(
            capability=(8, 0),
            is_accelerated=False,
            num_cores=108,
            lanes=64,
            threads=2048,
            shared_kib=164,
            l2_mib=40,
            clock_ghz=1.41,
        ),
    ),
    "l4": (
        "NVIDIA L4",
        Card(
            capability=(8, 9),
            is_accelerated=False,
            num_cores=58,
            lanes=128,
            threads=1536,
            shared_kib=100,
            l2_mib=48,
            clock_ghz=2.04,
        ),
    ),
    "h100": ("NVIDIA H100 80GB HBM3", _HOPPER),
    "h200": ("NVIDIA H200", _HOPPER),
    "b200": (
        "NVIDIA B200",
        dataclasses.replace(
            _HOPPER, capability=(10, 0), num_cores=148, l2_mib=126, clock_ghz=1.965
        ),
    ),
}
TARGETS = {
    name: Target(kind=kind, figures=DEVICES[name], device=device)
    for name, (kind, device) in _DEVICES.items()
}


_TPU_HOSTS = {1: "1x1", 4: "2x2", 8: "2x4"}


def devices_of(target: Target, count: int = 1) -> list[Any]:
    """Returns the devices of one host that programs for a target are compiled for."""
    from jax.experimental import topologies

    if isinstance(target.device, str):
        topology = topologies.get_topology_desc(
            f"{target.device}:{_TPU_HOSTS[count]}", platform="tpu"
        )
    else:
        # The name of a GPU's topology is empty, and both other arguments are needed.
        topology = topologies.get_topology_desc(
            "",
            platform="cuda",
            topology=f"1x1x{count}",
            target_config=_target_config(target),
        )
    return list(topology.devices)


def _target_config(target: Target) -> str:
    """Returns a GPU's `GpuTargetConfigProto`, in text form."""
    card = target.device
    assert isinstance(card, Card)
    major, minor = card.capability
    extension = "ACCELERATED_FEATURES" if card.is_accelerated else "NONE"
    device = {
        "name": f'"{target.kind}"',
        "device_vendor": '"NVIDIA Corporation"',
        "cuda_compute_capability": (
            f"{{ major: {major} minor: {minor} feature_extension: {extension} }}"
        ),
        "core_count": card.num_cores,
        "fpus_per_core": card.lanes,
        "clock_rate_ghz": card.clock_ghz,
        "device_memory_size": int(target.figures.memory),
        "memory_bandwidth": int(target.figures.bandwidth),
        "l2_cache_size": card.l2_mib * 2**20,
        "shared_memory_per_core": card.shared_kib * 2**10,
        "shared_memory_per_block_optin": (card.shared_kib - 1) * 2**10,
        "threads_per_core_limit": card.threads,
        # Equal on all of these cards.
        "shared_memory_per_block": 48 * 2**10,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "device_address_bits": 64,
        # Versions of the toolkit that the wheels bring.
        "driver_version": '"13.0.0"',
        "runtime_version": '"13.0.0"',
        "compile_time_toolkit_version": '"13.0.0"',
        "dnn_version": '"9.12.0"',
    }
    fields = " ".join(f"{name}: {value}" for name, value in device.items())
    return (
        f'gpu_device_info {{ {fields} }} platform_name: "CUDA" '
        "dnn_version_info { major: 9 minor: 12 } "
        f'device_description_str: "{target.kind}"'
    )
