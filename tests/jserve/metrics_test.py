import dataclasses

from prometheus_client import CollectorRegistry, generate_latest

from fake_server import FakeLoop
from jserve.events import EngineStats, PredictorStatus, StartUp, StepRecord
from jserve.metrics import ServerMetrics


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


def test_refits_and_replacements_are_counted() -> None:
    rows = scrape(
        "predictor_",
        predictor=PredictorStatus(name="linear", num_refits=3, num_replaced=7),
    )
    assert 'jserve:predictor_info{model_name="m",predictor="linear"} 1.0' in rows
    assert 'jserve:predictor_refits_total{model_name="m"} 3.0' in rows
    assert 'jserve:predictor_replaced_total{model_name="m"} 7.0' in rows
    assert not any("fallback_total" in row for row in rows)


def test_warm_up_can_be_watched() -> None:
    fields = {"num_programs": 2, "num_programs_total": 30}
    rows = scrape("num_programs", **fields)
    assert 'jserve:num_programs{model_name="m"} 2.0' in rows
    assert 'jserve:num_programs_total{model_name="m"} 30.0' in rows
    rows = scrape("", **fields, start_up=StartUp(ready_s=1.5))
    assert 'jserve:ready_seconds{model_name="m"} 1.5' in rows
    assert not any("warm_seconds" in row for row in rows), "it is not warm yet"
