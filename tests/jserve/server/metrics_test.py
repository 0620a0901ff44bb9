import dataclasses

from prometheus_client import generate_latest

from jserve.records.events import PredictorStatus, StartUp
from jserve.server.metrics import ServerMetrics
from jserve_sched.policies.base import SearchTotals
from jserve_sched.requests.output_lengths import LengthErrors
from tests.fake_loop import FakeLoop


def scrape(**fields: object) -> dict[str, float]:
    """The scrape of a snapshot: values by name and labels, without the model's."""
    loop = FakeLoop()
    stats = dataclasses.replace(loop.stats(), **fields)  # type: ignore[arg-type]
    loop.stats = lambda: stats  # type: ignore[method-assign]
    text = generate_latest(ServerMetrics(loop, "m").registry).decode()
    rows = (row.rsplit(" ", 1) for row in text.splitlines() if "#" not in row)
    model = 'model_name="m"'
    return {
        name.replace(f"{{{model}}}", "").replace(f"{model},", ""): float(value)
        for name, value in rows
    }


def test_what_the_engine_counts_is_scraped() -> None:
    searches = SearchTotals(num_searches=2, search_s=0.5)
    rows = scrape(
        predictor=PredictorStatus(name="linear", num_refits=3, num_replaced=7),
        searches=searches,
        num_programs=2,
        num_programs_total=30,
        start_up=StartUp(ready_s=1.5),
    )
    for name, value in {
        'predictor_info{predictor="linear"}': 1,
        "predictor_refits_total": 3,
        "predictor_replaced_total": 7,
        "plan_searches_total": 2,
        "plan_search_seconds_total": 0.5,
        "num_programs": 2,
        "num_programs_total": 30,
        "ready_seconds": 1.5,
    }.items():
        assert rows[f"jserve:{name}"] == value
    assert "jserve:warm_seconds" not in rows, "it is not warm yet"
    assert not any("fallback_total" in name for name in rows)
    assert "jserve:step_log_records" not in rows, "there is no step log"
    assert scrape(is_recording=False)["jserve:step_log_records"] == 0
    errors = {"predictor": "mlp", "median_error": 0.06, "p95_coverage": 0.94}
    status = PredictorStatus(
        name="auto", fallback="device", kinds={"decode": errors | {"bias": -0.01}}
    )
    rows = scrape(predictor=status)
    assert rows['jserve:predictor_serves{predictor="mlp",step_kind="decode"}'] == 1
    for name, value in (("median_error", 0.06), ("bias", -0.01)):
        assert rows[f'jserve:predictor_{name}{{step_kind="decode"}}'] == value
    assert rows['jserve:predictor_fallback_total{reason="device"}'] == 1


def test_predicted_lengths_are_summed_by_class() -> None:
    names = ("predictions", "actual_tokens", "predicted_tokens", "abs_error_tokens")
    values = {"chat": (4, 100, 130, 50), "code": (1, 9, 7, 2)}
    errors = {name: LengthErrors(*numbers) for name, numbers in values.items()}
    rows = scrape(length_errors=errors)
    found = {name: value for name, value in rows.items() if ":length_" in name}
    assert found == {
        f'jserve:length_{name}_total{{service_class="{service_class}"}}': number
        for service_class, numbers in values.items()
        for name, number in zip(names, numbers, strict=True)
    }
