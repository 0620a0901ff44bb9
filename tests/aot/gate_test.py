"""Every kind of program, compiled for every kind of device, without any of them."""

from typing import Any

import pytest

from tests.aot.compiling import Job, compile_programs
from tests.aot.gate import faults
from tests.aot.targets import TARGETS

pytestmark = [pytest.mark.aot, pytest.mark.timeout(1800)]
DECODE = "B32xNB0"
PROGRAMS = (DECODE, "B8xNB4", "B0xNB7", "head32", "draw32")
# What takes the place of a kernel where it does not take a model.
FALLBACKS = {"v5e": "small", "v6e": "few heads", "a100": "small"}


def check(job: Job) -> None:
    found = {one["program"]: faults(job, one) for one in compile_programs(job)}
    assert found == {name: [] for name in job.programs}


@pytest.mark.parametrize("target", TARGETS)
def test_programs_are_as_they_must_be(target: str) -> None:
    check(Job(target=target, programs=PROGRAMS))


@pytest.mark.parametrize(("target", "count"), [("v5e", 8), ("v6e", 4), ("h100", 4)])
def test_so_they_are_on_devices_that_share_the_model(target: str, count: int) -> None:
    check(Job(target=target, programs=PROGRAMS, num_devices=count))


@pytest.mark.parametrize("target", FALLBACKS)
def test_so_they_are_without_a_kernel(target: str) -> None:
    model = FALLBACKS[target]
    check(Job(target=target, programs=PROGRAMS[:3], model=model, attention="page_loop"))


@pytest.mark.parametrize(
    ("target", "model"),
    [
        ("v6e", "capped"),
        ("h200", "capped"),
        ("v6e", "experts"),  # on GPU they are loops that the host launches
        ("h200", "sinks"),
    ],
)
def test_so_they_are_with_what_other_families_have(target: str, model: str) -> None:
    check(Job(target=target, programs=("B8xNB4", "head32"), model=model))


def test_the_kernel_for_tpu_reads_a_cache_of_fewer_bits() -> None:
    check(Job(target="v5e", programs=(DECODE,), kv_dtype="float8_e4m3fn"))


@pytest.mark.parametrize(
    ("target", "weights"), [("v5e", "int8"), ("l4", "int8"), ("h200", "fp8")]
)
def test_quantised_weights_stay_so_in_memory(target: str, weights: str) -> None:
    check(Job(target=target, programs=(DECODE, "head32"), weights=weights))


@pytest.mark.parametrize(
    ("target", "fields", "conditions"),
    [
        (
            "v6e",
            {"attention": "cpu"},
            {
                "each layer has a discard page",
                "nothing copies a layer's cache",
                "temporaries are bounded",
                "the memory planned suffices",
            },
        ),
        ("a100", {"weights": "fp8"}, {"no weight is dequantised to memory"}),
    ],
    ids=["cpu's attention", "fp8 where no product takes it"],
)
def test_what_does_not_suit_a_device_is_noticed(
    target: str, fields: dict[str, Any], conditions: set[str]
) -> None:
    job = Job(target=target, programs=(DECODE,), **fields)
    [report] = compile_programs(job)
    found = faults(job, report)
    assert {one.partition(":")[0] for one in found} == conditions, found
