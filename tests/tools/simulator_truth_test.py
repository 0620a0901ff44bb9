"""The claims of benchmarks/simulator_truth.py that must not be lost."""

import numpy as np
import pytest

from jserve_sched.simulator import SimulationResult
from jserve_tools.gpu_cost_models import PROFILES, gpu_cost_model, read_points
from jserve_tools.measured_runs import (
    CARDS,
    Figures,
    measured_figures,
    simulated_run,
    trace_rows,
    ttft_differences,
)


@pytest.mark.parametrize(
    ("card", "ttft_s", "tpot_ms", "makespan_s"),
    [("rtx4090", 65.4566, 32.4466, 183.567), ("rtxpro6000", 7.0972, 32.458, 65.926)],
)
def test_measured_figures_are_those_published(
    card: str, ttft_s: float, tpot_ms: float, makespan_s: float
) -> None:
    figures = measured_figures(card)
    assert figures.ttft_mean_s == pytest.approx(ttft_s, abs=1e-3)
    assert figures.tpot_mean_ms == pytest.approx(tpot_ms, abs=1e-3)
    assert figures.makespan_s == pytest.approx(makespan_s, abs=1e-2)


@pytest.mark.parametrize("card", CARDS)
def test_trace_is_what_was_measured(card: str) -> None:
    path = PROFILES / card / "measured_requests.csv"
    lengths = read_points(path, ("prompt_tokens", "output_tokens")).tolist()
    assert lengths == [[row.prompt_tokens, row.output_tokens] for row in trace_rows()]


def test_errors_are_signed_percent() -> None:
    truth = measured_figures(CARDS[0])
    slow = Figures(
        ttft_mean_s=truth.ttft_mean_s * 1.1,
        ttft_p50_s=truth.ttft_p50_s,
        ttft_p90_s=truth.ttft_p90_s,
        tpot_mean_ms=truth.tpot_mean_ms * 0.9,
        makespan_s=truth.makespan_s,
    )
    errors = slow.errors(truth)
    assert errors["ttft_mean_s"] == pytest.approx(10)
    assert errors["tpot_mean_ms"] == pytest.approx(-10)
    assert errors["makespan_s"] == pytest.approx(0)


@pytest.fixture(scope="module")
def rtx4090() -> tuple[Figures, SimulationResult]:
    return simulated_run(trace_rows(), gpu_cost_model("rtx4090-llama3.1-8b-table"))


def test_rtx4090_is_told_truly(rtx4090: tuple[Figures, SimulationResult]) -> None:
    figures, result = rtx4090
    errors = figures.errors(measured_figures("rtx4090"))
    assert abs(errors["ttft_mean_s"]) <= 5.0
    assert abs(errors["tpot_mean_ms"]) <= 3.0
    assert abs(errors["makespan_s"]) <= 3.0
    assert all(outcome.failure is None for outcome in result.outcomes)
    assert result.counters.num_preemptions > 100  # the run is about KV pressure


def test_rtx4090_is_told_truly_for_each_request(
    rtx4090: tuple[Figures, SimulationResult],
) -> None:
    differences_s = np.abs(ttft_differences("rtx4090", rtx4090[1]))
    assert np.median(differences_s) < 1.0  # of a mean of 65 s


def test_requests_share_no_prompt(rtx4090: tuple[Figures, SimulationResult]) -> None:
    assert rtx4090[1].counters.prefix_hit_tokens == 0
