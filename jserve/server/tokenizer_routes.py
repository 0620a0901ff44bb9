"""Text to token ids and back, in vLLM's form: /tokenize and /detokenize."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from msgspec import Meta, Raw, Struct

from jserve.server.bodies import BodyLimits, received_body
from jserve.server.chat_request import ChatRequest
from jserve.server.errors import ApiError
from jserve.server.openapi import accepts
from jserve.server.protocol import CompletionRequest, GenerationRequest
from jserve.server.service import Service


class Tokens(Struct):
    """POST /detokenize."""

    tokens: list[Annotated[int, Meta(ge=0, lt=2**31)]]


def tokenizer_router(service: Service) -> APIRouter:
    """Returns the endpoints of the tokenizer."""
    router = APIRouter()
    bodies = BodyLimits(service.max_body_bytes, service.config.body_timeout_s)

    @router.post("/tokenize", openapi_extra=accepts(CompletionRequest, ChatRequest))
    async def tokenize(request: Request) -> dict[str, Any]:
        """Returns the ids of the `prompt` or the `messages` of a request."""
        async with received_body(request, bodies) as body:
            fields = _decode(body.read(), dict[str, Raw])
            is_chat = "messages" in fields
            model: type[GenerationRequest] = (
                ChatRequest if is_chat else CompletionRequest
            )
            asked = await service.readers.read(model, body, "")
        if len(asked.prompts) != 1:
            raise ApiError(f"prompt has {len(asked.prompts)} texts, not 1", "prompt")
        tokens = asked.prompts[0].tokens.tolist()
        return {
            "count": len(tokens),
            "max_model_len": service.engine.limits.context_tokens,
            "tokens": tokens,
        }

    @router.post("/detokenize", openapi_extra=accepts(Tokens))
    async def detokenize(request: Request) -> dict[str, str]:
        """Returns the text of `tokens`."""
        async with received_body(request, bodies) as body:
            asked = _decode(body.read(), Tokens)
        last = service.engine.vocab_size - 1
        if asked.tokens and max(asked.tokens) > last:
            message = f"tokens has {max(asked.tokens)}, which is not in 0..{last}"
            raise ApiError(message, "tokens")
        return {"prompt": service.tokenizer.decode(asked.tokens)}

    return router


def _decode(data: bytes, model: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=model)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(f"the body is not such a request: {error}") from None
