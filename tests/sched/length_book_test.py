"""Output lengths in the scheduler: predicted, learned, and predicted anew."""

import dataclasses

import pytest

from fakes import Driver, expected_output, make_request, make_scheduler
from jserve_sched.length_book import MAX_ANEW, LengthBook
from jserve_sched.length_errors import LengthErrors, pool_length_errors
from jserve_sched.length_estimates import OracleLengths, make_length_estimator
from jserve_sched.request import FinishReason, Request
from jserve_sched.slo import Slo
from jserve_sched.waiting import WaitingQueue


@dataclasses.dataclass
class Scripted:
    """Says what it is told, and has news when it is told so."""

    tokens: int
    has_news: bool = False
    seen: list[Request] = dataclasses.field(default_factory=list)

    def estimate(self, request: Request) -> int:
        return self.tokens

    def update(self, request: Request) -> bool:
        self.seen.append(request)
        return self.has_news


def test_answers_are_predicted_on_arrival_and_settled_at_the_end() -> None:
    scheduler = make_scheduler(lengths=OracleLengths({"a": 3, "b": 9, "c": 2}))
    driver = Driver(scheduler)
    for name, service_class in (("a", "chat"), ("b", "chat"), ("c", "code")):
        request = make_request(
            8,
            5,
            request_id=name,
            service_class=service_class,
            stop_token_ids=frozenset((999,)),  # nobody says that
        )
        scheduler.submit(request)
        assert request.predicted_output_tokens == {"a": 3, "b": 5, "c": 2}[name]
    driver.run()
    assert scheduler.length_errors == {
        "chat": LengthErrors(
            num_requests=2,
            sum_tokens=10,
            sum_predicted_tokens=8,
            sum_abs_error_tokens=2,
        ),
        "code": LengthErrors(
            num_requests=1, sum_tokens=5, sum_predicted_tokens=2, sum_abs_error_tokens=3
        ),
    }


def test_only_what_might_stop_can_be_wrong() -> None:
    scheduler = make_scheduler()
    prompt = [3, 1, 4]
    second = expected_output(make_request(max_tokens=5, prompt=prompt))[1]
    scheduler.submit(
        make_request(
            max_tokens=5,
            prompt=prompt,
            min_tokens=1,
            stop_token_ids=frozenset((second,)),
        )
    )
    scheduler.submit(make_request(8, 5, service_class="as long as asked for"))
    Driver(scheduler).run()
    assert scheduler.length_errors == {
        "best_effort": LengthErrors(
            num_requests=1, sum_tokens=2, sum_predicted_tokens=5, sum_abs_error_tokens=3
        )
    }


def test_cancelled_requests_teach_nothing() -> None:
    estimator = Scripted(4)
    scheduler = make_scheduler(lengths=estimator)
    for name in ("a", "b"):
        stops = frozenset((999,))
        scheduler.submit(make_request(8, 5, request_id=name, stop_token_ids=stops))
    scheduler.cancel("a")
    Driver(scheduler).run()
    assert [one.request_id for one in estimator.seen] == ["b"]
    assert estimator.seen[0].finish_reason is FinishReason.LENGTH
    assert scheduler.length_errors["best_effort"].num_requests == 1


def test_news_reach_the_queue_a_part_after_each_step() -> None:
    estimator = Scripted(4)
    scheduler = make_scheduler(lengths=estimator, max_num_seqs=2)
    driver = Driver(scheduler, lag=0)
    num_waiting = 2 * MAX_ANEW
    scheduler.submit(make_request(4, 1, request_id="first"))
    waiting = [
        make_request(4, 9, prompt=[1] * 4, arrival_s=1.0) for _ in range(num_waiting)
    ]
    for one in waiting:
        scheduler.submit(one)
    estimator.tokens, estimator.has_news = 7, True
    while not estimator.seen:
        driver.step()
    estimator.has_news = False

    def num_told() -> int:
        return sum(one.predicted_output_tokens == 7 for one in waiting)

    # Who was admitted in the meantime keeps the old prediction.
    assert MAX_ANEW - 2 <= num_told() <= MAX_ANEW
    driver.step()
    running = [one for one in waiting if one.slot is not None]
    assert num_told() + len(running) >= num_waiting
    assert all(one.first_predicted_tokens == 4 for one in waiting)


def test_news_that_never_stop_reach_the_tail_too() -> None:
    estimator = Scripted(4)
    queue = WaitingQueue(
        make_request(4, 9, request_id=f"{index:04}") for index in range(3 * MAX_ANEW)
    )
    book = LengthBook(estimator, queue)
    ended = make_request(4, 9)
    ends = []
    for tokens in (5, 6, 7, 8):
        estimator.tokens, estimator.has_news = tokens, True
        book.settle(ended)
        ends.append(book.catch_up())
    assert ends == [False, False, True, False]
    predicted = [one.predicted_output_tokens for one in queue.requests]
    assert predicted == [8] * MAX_ANEW + [6] * MAX_ANEW + [7] * MAX_ANEW
    assert [book.catch_up() for _ in range(5)] == [False, True, False, False, False]
    assert {one.predicted_output_tokens for one in queue.requests} == {8}


def test_a_round_of_new_predictions_asks_for_a_new_plan() -> None:
    estimator = Scripted(4)
    scheduler = make_scheduler(lengths=estimator, max_num_seqs=1)
    driver = Driver(scheduler, lag=0)
    scheduler.submit(make_request(4, 1))
    for _ in range(MAX_ANEW + 1):
        scheduler.submit(make_request(4, 9, prompt=[1] * 4, arrival_s=1.0))
    before = scheduler.view(0.0).epoch
    estimator.has_news = True
    driver.step()
    estimator.has_news = False
    assert scheduler.view(0.0).epoch == before + 1, "one has ended"
    driver.step()
    assert scheduler.view(0.0).epoch == before + 2, "all have been told"
    driver.step()
    assert scheduler.view(0.0).epoch == before + 2


def test_a_new_prediction_moves_the_deadline_of_who_was_preempted() -> None:
    scheduler = make_scheduler(lengths=Scripted(3))
    request = make_request(8, 9, slo=Slo(ttlt_s=8.0))
    request.output_tokens.append(1)
    scheduler.submit(request)
    queue = scheduler.view(0.0).queue
    before = queue.facts()[:, 0].tolist()
    assert before[:2] == [request.next_deadline_s, 8.0] == [6.0, 8.0]
    queue.predict(request, 9)
    assert queue.facts()[:, 0].tolist()[:2] == [request.next_deadline_s, 8.0]
    assert request.next_deadline_s == pytest.approx(4.5)


@pytest.mark.parametrize("spec", ["mean", "gaussian", "quantile"])
@pytest.mark.parametrize("policy", ["fcfs", "sjf", "qoserve", "sliding"])
def test_learned_lengths_change_no_answer(spec: str, policy: str) -> None:
    outputs = []
    for estimator in (make_length_estimator(f"{spec}:least=2"), None):
        scheduler = make_scheduler(policy=policy, lengths=estimator, num_pages=24)
        requests = [
            make_request(
                5 + index % 13,
                30,
                request_id=f"{index}",
                slo=Slo(ttlt_s=1.0) if index % 2 else Slo(),
                stop_token_ids=frozenset(range(8)),
            )
            for index in range(24)
        ]
        for one in requests:
            scheduler.submit(one)
        Driver(scheduler).run()
        outputs.append([one.output_tokens for one in requests])
        errors = scheduler.length_errors["best_effort"]
        assert errors.sum_tokens == sum(map(len, outputs[-1]))
    assert outputs[0] == outputs[1]


def test_errors_of_engines_add_up() -> None:
    one = LengthErrors(
        num_requests=1, sum_tokens=5, sum_predicted_tokens=7, sum_abs_error_tokens=2
    )
    pooled = pool_length_errors([{"a": one}, {"a": one, "b": one}, {}])
    assert pooled["b"] == one
    assert pooled["a"].num_requests == 2 and pooled["a"].sum_tokens == 10
    assert pooled["a"].sum_predicted_tokens == 14
    assert pooled["a"].sum_abs_error_tokens == 4
