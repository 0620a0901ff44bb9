"""Which process this is, as flags or whoever started it say."""

import jax
import pytest
from jax._src.clusters import ClusterEnv

from jserve.engine.cluster import ProcessConfig, find_cluster

SLURM = {
    "SLURM_JOB_ID": "70000",
    "SLURM_STEP_NODELIST": "gpu[003-004,9]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        (
            {
                "LWS_LEADER_ADDRESS": "big-0.big.default",
                "LWS_GROUP_SIZE": "2",
                "LWS_WORKER_INDEX": "1",
                "TPU_WORKER_ID": "7",
            },
            ("big-0.big.default:8482", 2, 1),
        ),
        (
            {"TPU_WORKER_HOSTNAMES": "t-0.svc,t-1.svc", "TPU_WORKER_ID": "1"},
            ("t-0.svc:8482", 2, 1),
        ),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
    ],
)
def test_the_environment_says_which_process_this_is(
    environ: dict[str, str], found: tuple[str, int, int] | None
) -> None:
    cluster = find_cluster(ProcessConfig(), environ)
    assert (cluster and tuple(cluster.values())) == found


def test_a_variable_that_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="LWS_GROUP_SIZE='' in the environment is not"):
        find_cluster(ProcessConfig(), {"LWS_LEADER_ADDRESS": "big-0.big"})


def test_jax_reads_the_variables_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    cluster = find_cluster(ProcessConfig(), SLURM)
    assert cluster is not None
    found = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, cluster["cluster_detection_method"], 1
    )
    port = 70000 % 2**12 + (65535 - 2**12 + 1)
    assert found == (f"gpu003:{port}", 4, 2, [0])
    assert jax.process_count() == 1  # nothing was joined


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"process_id": 0}, "process_id=0 go together"),
        ({"coordinator": "a:1", "num_processes": 2}, "process_id=-1 go together"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 1}, "'a' is not HOST:"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "=2 is not in 0"),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    fields: dict[str, str | int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ProcessConfig(**fields)  # type: ignore[arg-type]


def test_flags_come_before_the_environment() -> None:
    config = ProcessConfig(coordinator="a:1", num_processes=2, process_id=0)
    cluster = find_cluster(config, {"TPU_WORKER_ID": "1"})
    assert cluster is not None and tuple(cluster.values()) == ("a:1", 2, 0)
