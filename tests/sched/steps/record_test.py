from jserve.flags import field_help
from jserve_sched.steps.record import StepRecord


def test_every_field_is_documented() -> None:
    meanings = field_help(StepRecord)
    assert tuple(meanings) == StepRecord._fields
    times = [text for name, text in meanings.items() if name.endswith("_s")]
    assert all("seconds" in text for text in times)
