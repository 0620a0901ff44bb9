import json

import pytest

from jserve_sched.requests.service_class import ServiceClass, parse_service_classes
from jserve_sched.requests.slo import Slo


def test_relative_classes_resolve_against_measurements() -> None:
    chat = ServiceClass(name="chat", ttft_slowdown=4, tbt_step_multiple=3)
    assert chat.is_relative
    assert chat.resolve(isolated_ttft_s=0.5, step_s=0.01) == Slo(ttft_s=2.0, tbt_s=0.03)
    with pytest.raises(ValueError, match=r"ttft_slowdown=.* needs a measured"):
        chat.resolve(step_s=0.01)
    with pytest.raises(ValueError, match=r"tbt_step_multiple=.* needs a measured"):
        chat.resolve(isolated_ttft_s=0.5)


def test_parse_service_classes() -> None:
    text = json.dumps([{"name": "a", "share": 0.5, "ttft_s": 1}, {"name": "b"}])
    assert [one.name for one in parse_service_classes(text)] == ["a", "b"]
    (one,) = parse_service_classes(
        '[{"name": "a", "tbt_s": null, "guard": true, "weight": 4}]'
    )
    assert one == ServiceClass(name="a", guard=True, weight=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "non-empty"),
        ('"a"', "non-empty"),
        ("[1]", "must be a JSON object"),
        ('[{"name": "a", "tfft_s": 1}]', "tfft_s"),
        ('[{"name": "a"}, {"name": "a"}]', "repeat"),
        ('[{"name": "a", "share": 2}]', "share=2"),
        ('[{"name": "a", "ttft_s": 1, "ttft_slowdown": 2}]', "not both"),
        ('[{"name": "a", "ttft_s": NaN}]', "ttft_s must be a finite"),
        ('[{"name": "a", "tbt_step_multiple": 2}]', "needs a ttft bound"),
        ('[{"name": ""}]', "needs a name"),
        (r'[{"name": "\ud800"}]', "needs a name to print"),
        ('[{"share": 1}]', "name is not a string"),
        ('[{"name": "a", "share": "0.5"}]', "class 'a': share='0.5' is not a number"),
        ('[{"name": "a", "share": null}]', "share=None is not a number"),
        ('[{"name": "a", "share": true}]', "share=True is not a number"),
        ('[{"name": "a", "guard": 1}]', "guard=1 is not true or false"),
        ('[{"name": "a", "admission": "drop"}]', "admission='drop' is not in"),
        ('[{"name": "a", "admission": "refuse"}]', "'a': admission='refuse' needs a"),
        ('[{"name": "a", "max_queue_wait_s": 0}]', "max_queue_wait_s must be a"),
        (f'[{{"name": "a", "ttft_s": 1{"0" * 400}}}]', "ttft_s must be a finite"),
    ],
)
def test_bad_service_classes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_service_classes(text)
