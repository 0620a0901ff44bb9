"""POST /jserve/predict: when the tokens of a request would come, if it came now.

Version 1. The body is that of a completion or a chat (an object with `prompt` or
`messages`), or the lengths of one: see `Lengths`. A number may be added to the answer
within a version; see `answer` for those of today.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from anyio import to_thread
from msgspec import Meta, Raw, Struct

from jserve.records.events import NotServingError
from jserve.server.bodies import Body
from jserve.server.chat_request import ChatRequest
from jserve.server.errors import ApiError
from jserve.server.protocol import CompletionRequest, GenerationRequest
from jserve.server.service import Service
from jserve.server.slo_input import SloFields
from jserve_sched.requests.forecast import PAIRS, Forecast
from jserve_sched.requests.limits import TooLongError
from jserve_sched.requests.request import Request

VERSION = 1
_MOST_HASHES = 2**16
_Count = Annotated[int, Meta(ge=1)]


class Lengths(
    Struct, kw_only=True, forbid_unknown_fields=True, rename={"service_class": "class"}
):
    """A request by its lengths; with `output_tokens` no length has to be estimated.

    `prefix_hashes` are hashes of the prompt's full KV pages as 32 hexadecimal digits
    each, the first page first, to find how much of it is cached.
    """

    prompt_tokens: _Count
    max_tokens: _Count | None = None
    output_tokens: _Count | None = None
    slo: SloFields | None = None
    service_class: str | None = None
    prefix_hashes: Annotated[
        list[Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]],
        Meta(max_length=_MOST_HASHES),
    ] = msgspec.field(default_factory=list)


async def predict(
    service: Service, body: Body, headers: Mapping[str, str], arrival_s: float
) -> dict[str, Any]:
    """Returns the answer to a body, of several outputs for the one that ends last.

    Raises:
      ApiError: If it is refused as the request itself would be, or is neither that nor
        lengths.
    """
    data = body.read()  # fields hold on to it while the body is read
    try:
        fields = msgspec.json.decode(data, type=dict[str, Raw])
        lengths = None
        if not {"prompt", "messages"} & fields.keys():
            lengths = msgspec.json.decode(data, type=Lengths)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"the body is not a request or its lengths: {error}") from None
    if lengths is None:
        model: type[GenerationRequest] = CompletionRequest
        model = ChatRequest if "messages" in fields else model
        asked = await service.readers.read(model, body, "")
        reply = service.reply(asked, headers, arrival_s)
        requests = [one.request for one in reply.generations]
    else:
        requests = [_of_lengths(service, lengths, headers, arrival_s)]
    try:
        forecast = service.engine.forecast  # which may wait for a plan to be made
        found = [await to_thread.run_sync(forecast, one) for one in requests]
        return answer(max(found, key=lambda one: one.ttlt_s[1]))
    except NotServingError as error:
        raise service.refusal(error) from None


def _of_lengths(
    service: Service, asked: Lengths, headers: Mapping[str, str], arrival_s: float
) -> Request:
    slo, service_class = service.classes.choose(
        slo=asked.slo,
        headers=headers,
        service_tier=asked.service_class,
        field="class",
    )
    most = asked.output_tokens or asked.max_tokens
    if most is None:
        raise ApiError("give max_tokens or output_tokens", "max_tokens")
    try:
        service.engine.limits.check(asked.prompt_tokens, most)
    except TooLongError as error:
        raise ApiError(str(error)) from None
    ends = () if asked.output_tokens else service.tokenizer.eos_token_ids
    return Request(
        request_id="predicted",
        arrival_s=arrival_s,
        prompt_tokens=np.zeros(asked.prompt_tokens, np.int32),
        max_tokens=most,
        stop_token_ids=frozenset(ends),
        slo=slo,
        service_class=service_class.name,
        guard=service_class.guard,
        weight=service_class.weight,
        # An unknown page, where none are given, rather than those of the zeros.
        page_hashes=[bytes.fromhex(one) for one in asked.prefix_hashes] or [b""],
    )


def answer(forecast: Forecast) -> dict[str, Any]:
    """Returns the answer of this version: see `Forecast`; None is never."""
    pairs = {name: getattr(forecast, name) for name in PAIRS}
    return {
        "version": VERSION,
        **{name: {"p50": p50, "p90": p90} for name, (p50, p90) in pairs.items()},
        "chances": forecast.chances,
        "chance": forecast.chance,
        "attainable_in_s": forecast.attainable_in_s,
    }
