"""Makes requests and a reply of a request's body, and submits them to the engine."""

import dataclasses
import time
import uuid
from collections.abc import Mapping, Sequence

import numpy as np

from jserve.config import ServerConfig
from jserve.engine.interface import ServingEngine
from jserve.records.events import NotServingError, QueueFullError
from jserve.server.errors import ApiError, quote
from jserve.server.formats import AnswerFormat
from jserve.server.generation import Generation, Reply, TokenRouter
from jserve.server.http_limits import largest_honest_body
from jserve.server.metrics import ServerMetrics
from jserve.server.prompts import (
    check_tokens,
    encode_chat,
    encode_prompt,
    split_prompts,
)
from jserve.server.protocol import (
    SEEDS,
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
)
from jserve.server.slo_input import UNREAD_CLASS, ServiceClasses
from jserve.server.stop_strings import StopFinder
from jserve.text.tokenizer import Tokenizer
from jserve_sched.requests.limits import TooLongError
from jserve_sched.requests.request import MAX_STOP_TOKENS, Request

_DEFAULT_COMPLETION_TOKENS = 16  # as in OpenAI's API
_NOT_SERVING_RETRY_S = 5.0


@dataclasses.dataclass(frozen=True)
class _Prompt:
    """A prompt's token ids, the most output tokens, and the text echoed before them."""

    tokens: np.ndarray
    max_tokens: int
    echo: str = ""


class Service:
    """State and functions that the endpoints share."""

    def __init__(
        self,
        engine: ServingEngine,
        tokenizer: Tokenizer,
        config: ServerConfig,
        classes: ServiceClasses,
    ):
        num_eos = len(tokenizer.eos_token_ids)
        if num_eos > MAX_STOP_TOKENS:
            raise ValueError(
                f"the model has {num_eos} end-of-sequence tokens; the limit is "
                f"{MAX_STOP_TOKENS}"
            )
        self.engine = engine
        self.tokenizer = tokenizer
        self.config = config
        self.classes = classes
        self.model_name = config.served_model_name or engine.model_name
        self.max_body_bytes = config.max_body_bytes or largest_honest_body(
            engine.limits.context_tokens
        )
        self.metrics = ServerMetrics(engine, self.model_name)
        self.router = TokenRouter(engine, self.metrics)

    def check_open(self) -> None:
        """Refuses a request before its body is read, if it could not even be queued.

        Raises:
          ApiError: 429 if the queue is full, 503 if the engine is not serving.
        """
        try:
            self.engine.check_open()
        except (QueueFullError, NotServingError) as error:
            self.metrics.count_rejected(error, UNREAD_CLASS)
            raise self._refusal(error) from None

    def _refusal(self, error: QueueFullError | NotServingError) -> ApiError:
        if isinstance(error, QueueFullError):
            return ApiError(
                str(error),
                status=429,
                code="queue_full",
                retry_after_s=error.retry_after_s,
            )
        return ApiError(
            str(error) or "the engine is not serving",
            status=503,
            code=self.engine.health.value,
            retry_after_s=_NOT_SERVING_RETRY_S,
        )

    async def start(
        self, body: GenerationRequest, headers: Mapping[str, str], arrival_s: float
    ) -> Reply:
        """Starts a completion, or the next turn of a chat.

        Args:
          headers: HTTP headers, with names in lower case.
          arrival_s: Time of arrival on the engine's clock, seconds.

        Raises:
          ApiError: If the request is refused.
        """
        if body.model is not None:
            self.check_model(body.model)
        prompts = await self._prompts(body)
        reply = self._reply(body, prompts, headers, arrival_s)
        try:
            self.router.open(reply)
        except (QueueFullError, NotServingError) as error:
            for request in (one.request for one in reply.generations):
                is_attained = request.slo.is_best_effort
                name = request.service_class
                self.metrics.count_rejected(error, name, is_attained=is_attained)
            raise self._refusal(error) from None
        except ValueError as error:
            raise ApiError(str(error)) from None
        return reply

    def check_model(self, name: str) -> None:
        """Checks the name of a model.

        Raises:
          ApiError: 404 unless it is the name of the served model.
        """
        if name != self.model_name:
            message = f"the model {quote(name)} does not exist; this server has "
            message += repr(self.model_name)
            raise ApiError(message, "model", status=404, code="model_not_found")

    async def _prompts(self, body: GenerationRequest) -> list[_Prompt]:
        """Returns the prompts of a completion, or the single prompt of a chat."""
        tokenizer, vocab_size = self.tokenizer, self.engine.vocab_size
        if isinstance(body, ChatRequest):
            turns = [message.to_turn() for message in body.messages]
            tokens = check_tokens(
                await encode_chat(
                    tokenizer,
                    turns,
                    add_generation_prompt=body.add_generation_prompt is not False,
                ),
                vocab_size,
            )
            return [_Prompt(tokens, self._max_tokens(body, len(tokens)))]
        assert isinstance(body, CompletionRequest)
        prompts = []
        for prompt in split_prompts(body.prompt):
            tokens = check_tokens(await encode_prompt(tokenizer, prompt), vocab_size)
            echo = prompt if body.echo else ""
            if not isinstance(echo, str):
                echo = tokenizer.decode(echo)
            max_tokens = self._max_tokens(body, len(tokens))
            prompts.append(_Prompt(tokens, max_tokens, echo))
        return prompts

    def _max_tokens(self, body: GenerationRequest, num_prompt_tokens: int) -> int:
        """Returns the most output tokens after a prompt of this length."""
        limits = self.engine.limits
        room = limits.context_tokens - num_prompt_tokens
        prompt, default = "prompt", min(_DEFAULT_COMPLETION_TOKENS, room)
        name, number = "max_tokens", body.max_tokens
        if isinstance(body, ChatRequest):
            prompt, default = "messages", room
            if body.max_completion_tokens is not None:
                name, number = "max_completion_tokens", body.max_completion_tokens
        max_tokens = default if number is None else number
        try:
            limits.check(num_prompt_tokens, max_tokens, name)
        except TooLongError as error:
            param = prompt if room < 1 else name
            code = "context_length_exceeded"
            raise ApiError(str(error), param, code=code) from None
        return max_tokens

    def _reply(
        self,
        body: GenerationRequest,
        prompts: Sequence[_Prompt],
        headers: Mapping[str, str],
        arrival_s: float,
    ) -> Reply:
        # The format of the answer, and the number of requests.
        is_chat = isinstance(body, ChatRequest)
        form = AnswerFormat(
            is_chat=is_chat,
            response_id=f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            created_s=int(time.time()),
            model=self.model_name,
            has_usage=bool(body.stream_options and body.stream_options.include_usage),
            has_token_ids=bool(body.return_token_ids),
        )
        num_choices = body.n or 1
        num_requests = num_choices * len(prompts)
        max_requests = self.engine.config.max_queued_requests
        if num_requests > max_requests:
            message = f"{len(prompts)} prompts with n={num_choices} are {num_requests}"
            message += f" requests; the limit is max_queued_requests={max_requests}"
            raise ApiError(message, "n" if num_choices > 1 else "prompt")
        # What all requests share.
        slo, service_class = self.classes.choose(
            slo=body.slo, headers=headers, service_tier=body.service_tier
        )
        sampling = body.sampling()
        stop_token_ids = self._stop_token_ids(body)
        min_tokens = body.min_tokens or 0
        fewest = min(prompt.max_tokens for prompt in prompts)
        if min_tokens > fewest:
            message = f"min_tokens={quote(min_tokens)} is not in 0..{fewest}"
            raise ApiError(message, "min_tokens")
        keep_stop = bool(body.include_stop_str_in_output)
        # A request and a generation for each output.
        generations: list[Generation] = []
        for index in range(num_requests):
            prompt = prompts[index // num_choices]
            request = Request(
                request_id=f"{form.response_id}-{index}",
                arrival_s=arrival_s,
                prompt_tokens=prompt.tokens,
                max_tokens=prompt.max_tokens,
                min_tokens=min_tokens,
                stop_token_ids=stop_token_ids,
                slo=slo,
                service_class=service_class.name,
                guard=service_class.guard,
                sampling=dataclasses.replace(
                    sampling, seed=(sampling.seed + index % num_choices) % SEEDS
                ),
            )
            generations.append(
                Generation(
                    request=request,
                    tokenizer=self.tokenizer,
                    finder=StopFinder(body.stop or (), keep_stop=keep_stop),
                    metrics=self.metrics,
                    prefix=prompt.echo,
                )
            )
        return Reply(
            generations=generations,
            num_choices=num_choices,
            form=form,
            is_streamed=bool(body.stream),
        )

    def _stop_token_ids(self, body: GenerationRequest) -> frozenset[int]:
        """Returns the tokens that end an output: the request's and the model's."""
        asked = frozenset(body.stop_token_ids or ())
        own = frozenset() if body.ignore_eos else self.tokenizer.eos_token_ids
        if len(asked | own) > MAX_STOP_TOKENS:
            message = f"stop_token_ids has {len(asked)} ids, {len(asked | own)} with "
            message += f"the model's own; the limit is {MAX_STOP_TOKENS}"
            raise ApiError(message, "stop_token_ids")
        last = self.engine.vocab_size - 1
        for token in asked:
            if not 0 <= token <= last:
                message = f"stop_token_ids={quote(token)} is not in 0..{last}"
                raise ApiError(message, "stop_token_ids")
        return asked | own
