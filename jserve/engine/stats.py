"""A snapshot of an engine for health and metrics."""

from jserve.engine.engine import Engine
from jserve.engine.recent_steps import RecentSteps
from jserve.engine.warm_up import WarmUp
from jserve.records.events import EngineStats, Health, PredictorStatus
from jserve_sched.policies.base import searches_of
from jserve_sched.scheduler import Scheduler


def engine_stats(
    engine: Engine,
    scheduler: Scheduler,
    warm_up: WarmUp,
    *,
    health: Health,
    policy: str,
    num_submitted: int,
    records: RecentSteps,
    predictor: PredictorStatus,
) -> EngineStats:
    """Returns the snapshot.

    Args:
      num_submitted: Requests that the scheduler has not taken yet.
    """
    programs, counters = engine.programs, scheduler.counters
    return EngineStats(
        health=health,
        policy=policy,
        block_tokens=scheduler.buckets.block_tokens,
        buckets=scheduler.buckets,
        num_running=scheduler.num_running,
        num_waiting=scheduler.num_waiting + num_submitted,
        num_pages=engine.num_pages,
        num_free_pages=scheduler.ledger.num_available,
        num_programs=programs.num_compiled,
        num_programs_total=warm_up.num_programs_total,
        num_compiles_after_warmup=programs.num_compiles_after_warmup,
        num_preemptions=counters.num_preemptions,
        num_steps=records.num_steps,
        prompt_tokens=counters.prompt_tokens,
        prefix_hit_tokens=counters.prefix_hit_tokens,
        generated_tokens=counters.generated_tokens,
        compile_s=programs.wall_s,
        predictor=predictor,
        start_up=warm_up.start_up(),
        is_recording=records.is_recording,
        length_errors=dict(scheduler.length_errors),
        searches=searches_of(scheduler.policy),
    )
