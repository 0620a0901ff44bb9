import dataclasses

from prometheus_client import CollectorRegistry, generate_latest

from fake_server import FakeLoop
from jserve.events import EngineStats, PredictorStatus, StartUp, StepRecord
from jserve.metrics import ServerMetrics
from jserve_sched.outlook import Outlook, SearchTotals
from jserve_sched.output_lengths import LengthErrors

LABELS = ("chat", "code")


class View:
    """An idle engine with some counters."""

    def __init__(self, **fields: object):
        self._stats = dataclasses.replace(FakeLoop().stats(), **fields)

    def stats(self) -> EngineStats:
        return self._stats

    def steps(self, since: int = 0) -> list[StepRecord]:
        return []


def scrape(prefix: str, **fields: object) -> set[str]:
    registry = CollectorRegistry()
    registry.register(ServerMetrics(View(**fields), "m"))
    rows = generate_latest(registry).decode().splitlines()
    return {row for row in rows if row.startswith(f"jserve:{prefix}") and "=" in row}


def test_a_fallback_has_its_reason() -> None:
    rows = scrape(
        "predictor_", predictor=PredictorStatus(name="table", fallback="device")
    )
    assert 'jserve:predictor_info{model_name="m",predictor="table"} 1.0' in rows
    name = 'jserve:predictor_fallback_total{model_name="m",reason="device"} 1.0'
    assert name in rows
    rows = scrape("request_latency_", request_latency_fallback="model")
    name = 'jserve:request_latency_fallback_total{model_name="m",reason="model"} 1.0'
    assert rows == {name}


def test_refits_and_replacements_are_counted() -> None:
    rows = scrape(
        "predictor_",
        predictor=PredictorStatus(name="linear", num_refits=3, num_replaced=7),
    )
    assert 'jserve:predictor_info{model_name="m",predictor="linear"} 1.0' in rows
    assert 'jserve:predictor_refits_total{model_name="m"} 3.0' in rows
    assert 'jserve:predictor_replaced_total{model_name="m"} 7.0' in rows
    assert not any("fallback_total" in row for row in rows)


def test_searches_are_counted() -> None:
    totals = SearchTotals()
    for gain in (0.0, 0.5):
        totals.add(
            Outlook(
                order=("a",),
                made_s=0.0,
                epoch=1,
                num_proposals=100,
                gain=gain,
                search_s=0.25,
            )
        )
    assert scrape("plan_search", searches=totals) == {
        'jserve:plan_searches_total{model_name="m"} 2.0',
        'jserve:plan_search_proposals_total{model_name="m"} 200.0',
        'jserve:plan_search_seconds_total{model_name="m"} 0.5',
        'jserve:plan_search_gain_total{model_name="m"} 0.5',
    }


def test_predicted_lengths_are_summed_by_class() -> None:
    chat = LengthErrors(
        num_requests=4,
        sum_tokens=100,
        sum_predicted_tokens=130,
        sum_abs_error_tokens=50,
    )
    code = LengthErrors(
        num_requests=1, sum_tokens=9, sum_predicted_tokens=7, sum_abs_error_tokens=2
    )
    rows = scrape("length_", length_errors={"chat": chat, "code": code})
    labels = {one: f'{{model_name="m",service_class="{one}"}}' for one in LABELS}
    for name, values in (
        ("predictions", (4.0, 1.0)),
        ("actual_tokens", (100.0, 9.0)),
        ("predicted_tokens", (130.0, 7.0)),
        ("abs_error_tokens", (50.0, 2.0)),
    ):
        for label, value in zip(LABELS, values, strict=True):
            assert f"jserve:length_{name}_total{labels[label]} {value}" in rows
    assert len(rows) == 8, "nothing is said of classes that have had no answer"


def test_warm_up_can_be_watched() -> None:
    fields = {"num_programs": 2, "num_programs_total": 30}
    rows = scrape("num_programs", **fields)
    assert 'jserve:num_programs{model_name="m"} 2.0' in rows
    assert 'jserve:num_programs_total{model_name="m"} 30.0' in rows
    rows = scrape("", **fields, start_up=StartUp(ready_s=1.5))
    assert 'jserve:ready_seconds{model_name="m"} 1.5' in rows
    assert not any("warm_seconds" in row for row in rows), "it is not warm yet"
