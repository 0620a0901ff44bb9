from typing import Any

from jserve_tools.tables import lengths_table, run_tables


def run(**fields: Any) -> dict[str, Any]:
    return {
        "policy": "sjf",
        "load": 0.5,
        "by_class": {},
        "attainment": 1.0,
        "num_requests": 3,
        "num_finished": 3,
    } | fields


ERROR = {
    "chat": {
        "num_requests": 3,
        "mean_tokens": 80.0,
        "mean_predicted_tokens": 100.0,
        "mean_abs_error_tokens": 24.0,
    }
}


def test_predicted_lengths_have_a_table_of_their_own() -> None:
    runs = [run(), run(policy="annealing", length_error=ERROR)]
    _, _, row = lengths_table(runs).splitlines()
    expected = ["annealing", "@0.5x", "chat", "3", "80.0", "100.0", "24.0", "30.0%"]
    assert row.split() == expected
    assert lengths_table(runs) in run_tables(runs)


def test_it_is_shown_only_where_something_was_predicted() -> None:
    assert len(run_tables([run()]).split("\n\n")) == 2
