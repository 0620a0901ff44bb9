import dataclasses

from prometheus_client import CollectorRegistry, generate_latest

from fake_server import FakeLoop
from jserve.events import EngineStats, PredictorStatus, StepRecord
from jserve.metrics import ServerMetrics


class View:
    """An idle engine that plans by some predictor."""

    def __init__(self, status: PredictorStatus):
        self._stats = dataclasses.replace(FakeLoop().stats(), predictor=status)

    def stats(self) -> EngineStats:
        return self._stats

    def steps(self, since: int = 0) -> list[StepRecord]:
        return []


def scrape(status: PredictorStatus) -> set[str]:
    registry = CollectorRegistry()
    registry.register(ServerMetrics(View(status), "m"))
    rows = generate_latest(registry).decode().splitlines()
    return {row for row in rows if row.startswith("jserve:predictor_") and "=" in row}


def test_a_fallback_has_its_reason() -> None:
    rows = scrape(PredictorStatus(name="table", fallback="device"))
    assert 'jserve:predictor_info{model_name="m",predictor="table"} 1.0' in rows
    name = 'jserve:predictor_fallback_total{model_name="m",reason="device"} 1.0'
    assert name in rows


def test_refits_and_replacements_are_counted() -> None:
    rows = scrape(PredictorStatus(name="linear", num_refits=3, num_replaced=7))
    assert 'jserve:predictor_info{model_name="m",predictor="linear"} 1.0' in rows
    assert 'jserve:predictor_refits_total{model_name="m"} 3.0' in rows
    assert 'jserve:predictor_replaced_total{model_name="m"} 7.0' in rows
    assert not any("fallback_total" in row for row in rows)
