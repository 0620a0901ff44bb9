from jserve.flags import field_help
from jserve_sched.steps.record import FIELDS, StepRecord


def test_every_field_is_documented() -> None:
    meanings = field_help(StepRecord)
    assert tuple(meanings) == FIELDS
    assert all("seconds" in meanings[name] for name in FIELDS if name.endswith("_s"))
