"""What clients get of a step: its tokens, and which requests have ended and why."""

import time
from collections.abc import Mapping, Sequence

from jserve.records.events import TokenEvent, TokenLogprobs
from jserve.text.constraints import failure_of
from jserve_sched.requests.request import FinishReason
from jserve_sched.scheduler import Output


def token_events(
    outputs: Sequence[Output], logprobs: Mapping[str, TokenLogprobs], *, is_cut: bool
) -> list[TokenEvent]:
    """Returns an event for each output.

    Args:
      logprobs: By request id, of those that asked for them.
      is_cut: Whether the server ends what it cancels.
    """
    now_s = time.monotonic()
    return [
        TokenEvent(
            request.request_id,
            token,
            now_s,
            request.finish_reason,
            request.num_cached_tokens,
            failure_of(request),
            is_cut=is_cut and request.finish_reason is FinishReason.CANCELLED,
            retry_after_s=request.retry_after_s,
            logprobs=None if token is None else logprobs.get(request.request_id),
        )
        for request, token in outputs
    ]
