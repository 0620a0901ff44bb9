"""Simulated load: fitted lengths, common random numbers, SLOs."""

import dataclasses
import math

import numpy as np
import pytest

from jserve_sched.requests.service_class import ServiceClass
from jserve_sched.requests.slo import Slo
from jserve_sched.simulation.cost_model import CLOSED_FORMS
from jserve_sched.simulation.mixes import WORKLOADS
from jserve_sched.simulation.workload import (
    Arrival,
    Yardstick,
    at_rate,
    describe_lengths,
    isolated_times,
    unit_arrivals,
)

YARDSTICK = Yardstick(prompt_tokens=(1, 10_000), ttft_s=(0.1, 10.0), step_s=0.02)


def draw(
    name: str, num_requests: int, seed: int = 0, classes: tuple[ServiceClass, ...] = ()
) -> list[Arrival]:
    return unit_arrivals(
        WORKLOADS[name],
        num_requests=num_requests,
        seed=seed,
        yardstick=YARDSTICK,
        classes=classes,
    )


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_lengths_and_mixes_are_the_papers(name: str) -> None:
    found = describe_lengths(draw(name, 20_000))
    weights = sum(one.weight for one in WORKLOADS[name])
    for component in WORKLOADS[name]:
        achieved = found[component.service_class.name]
        for what, wanted in component.paper.items():
            assert achieved[what] == pytest.approx(wanted, rel=0.04), what
        share = achieved["num_requests"] / 20_000
        assert share == pytest.approx(component.weight / weights, abs=0.01)


def test_rates_share_their_random_numbers() -> None:
    units = draw("mixed_v1", 500)
    assert units == draw("mixed_v1", 500)
    assert units[:100] == draw("mixed_v1", 100)
    assert units != draw("mixed_v1", 500, seed=1)
    faster = at_rate(units, 4.0)
    assert [one.arrival_s * 4.0 for one in faster] == [one.arrival_s for one in units]
    assert [one.slo for one in faster] == [one.slo for one in units]
    at_once = at_rate(units, math.inf)
    assert {one.arrival_s for one in at_once} == {0.0} and len(at_once) == len(units)
    # Poisson: the gaps' deviation is their mean.
    gaps = np.diff([one.arrival_s for one in draw("sharegpt", 20_000)])
    assert gaps.mean() == pytest.approx(1.0, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.03)


def test_classes_by_name_or_by_share() -> None:
    mine = (
        ServiceClass(name="dialogue", ttft_s=1.0),
        ServiceClass(name="summarisation", ttlt_s=9.0, guard=True, weight=4),
    )
    usual = draw("mixed_v1", 200)
    for one in usual:  # as in the paper
        slowdown, tbt_s = {"dialogue": (5, 0.040), "summarisation": (10, 0.080)}[
            one.service_class
        ]
        isolated_s = YARDSTICK.isolated_ttft_s(one.num_prompt_tokens)
        assert one.slo == Slo(ttft_s=slowdown * isolated_s, tbt_s=tbt_s)
    named = draw("mixed_v1", 200, classes=mine)
    for one, other in zip(usual, named, strict=True):
        assert one.service_class == other.service_class
        assert one.num_prompt_tokens == other.num_prompt_tokens
        is_long = other.service_class == "summarisation"
        assert other.slo == (Slo(ttlt_s=9.0) if is_long else Slo(ttft_s=1.0))
        assert (other.guard, other.weight) == (is_long, 4 if is_long else 1)
    shares = (
        ServiceClass(name="gold", share=0.25, tbt_step_multiple=3.0, ttft_s=1.0),
        ServiceClass(name="lead", share=0.75),
    )
    drawn = draw("mixed_v1", 4000, classes=shares)
    gold = [one for one in drawn if one.service_class == "gold"]
    assert len(gold) / 4000 == pytest.approx(0.25, abs=0.03)
    assert gold[0].slo == Slo(ttft_s=1.0, tbt_s=3.0 * YARDSTICK.step_s)
    with pytest.raises(ValueError, match=r"add up to 0\.25"):
        draw("mixed_v1", 10, classes=shares[:1])


def test_a_prompt_alone_is_cut_at_the_token_limit() -> None:
    a100 = CLOSED_FORMS["a100-llama3-8b"]
    times = isolated_times(a100, max_prompt_tokens=5000)
    # 5,000 tokens: 2,048 + 2,048 + 904, each after those before it.
    chunks = [(0, 2048), (2048, 2048), (4096, 904)]
    ms = sum(7.51 + 0.06551 * n + 4.396e-6 * n * (u + n / 2) for u, n in chunks)
    assert times.isolated_ttft_s(5000) == pytest.approx(ms * 1e-3)
    assert times.isolated_ttft_s(1) == pytest.approx(10.73e-3, rel=1e-4)
    assert times.step_s == pytest.approx((10.73 + 8.415e-5 * 1025) * 1e-3)
    assert list(times.ttft_s) == sorted(times.ttft_s)
    in_blocks = dataclasses.replace(a100, block_tokens=512)
    whole = isolated_times(in_blocks, max_prompt_tokens=5000)
    # The last chunk is charged as two blocks.
    assert whole.isolated_ttft_s(5000) - times.isolated_ttft_s(5000) == pytest.approx(
        0.06551e-3 * (1024 - 904)
    )


def test_a_workload_declares_how_bursty_its_arrivals_are() -> None:
    gaps = np.diff([one.arrival_s for one in draw("bursts", 20_000)])
    assert gaps.mean() == pytest.approx(1.0, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(4.0, rel=0.1)


def test_turns_of_a_conversation_share_a_prefix() -> None:
    talk = draw("interactive_chat", 400)
    assert talk[:50] == draw("interactive_chat", 50)
    firsts = [one.block_ids[0] for one in talk]
    assert 400 / len(set(firsts)) == pytest.approx(4.0, rel=0.2)
    one = next(one for one in talk if firsts.count(one.block_ids[0]) > 2)
    same = [two for two in talk if two.block_ids[0] == one.block_ids[0]]
    for two in same:
        assert len(two.prompt()) == two.num_prompt_tokens
        shared = min(len(one.prompt()), len(two.prompt()))
        assert np.array_equal(one.prompt()[:shared], two.prompt()[:shared])
    assert len(draw("chat", 1)[0].prompt()) == draw("chat", 1)[0].num_prompt_tokens
