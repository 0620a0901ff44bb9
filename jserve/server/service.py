"""From a checked request body to a reply that is under way."""

import dataclasses
import time
import uuid
from collections.abc import Mapping, Sequence

import numpy as np

from jserve.config import ServerConfig
from jserve.events import NotServingError, QueueFullError
from jserve.metrics import ServerMetrics
from jserve.server import limits
from jserve.server.errors import ApiError
from jserve.server.formats import AnswerFormat
from jserve.server.generation import Generation, Reply
from jserve.server.http_limits import largest_honest_body
from jserve.server.port import EnginePort
from jserve.server.prompts import encode_chat, encode_prompt, split_prompts
from jserve.server.protocol import ChatRequest, CompletionRequest, GenerationRequest
from jserve.server.refusals import FieldFilter
from jserve.server.router import TokenRouter
from jserve.server.slo_input import UNREAD_CLASS, ServiceClasses
from jserve.server.stop_strings import StopFinder
from jserve.tokenizer import Tokenizer
from jserve_sched.request import MAX_STOP_TOKENS, Request

_DEFAULT_COMPLETION_TOKENS = 16  # as OpenAI's API has it
_NOT_SERVING_RETRY_S = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrival:
    """What is known of an HTTP request beside its body.

    Attributes:
      time_s: when it came, on the engine's clock.
      headers: names in lower case.
    """

    time_s: float
    headers: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prompt:
    """A prompt's token ids, how long its output may be, and what precedes it."""

    tokens: np.ndarray
    max_tokens: int
    echo: str = ""


class Service:
    """Everything the endpoints share.

    Attributes:
      engine: where requests run.
      tokenizer: the model's.
      config: what the server was told.
      classes: service classes.
      metrics: counters.
      router: carries tokens back.
      model_name: the name clients use.
    """

    def __init__(
        self,
        engine: EnginePort,
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
        self.metrics = ServerMetrics(engine, self.model_name)
        self.router = TokenRouter(engine, self.metrics)
        self._fields = FieldFilter()

    @property
    def max_body_bytes(self) -> int:
        """Largest request body taken."""
        return self.config.max_body_bytes or largest_honest_body(self.context_tokens)

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and output together that can run here."""
        return min(self.engine.max_model_len, self.engine.num_kv_tokens)

    def check_open(self) -> None:
        """Refuses a request before its body is read, if it could not even wait.

        Raises:
          ApiError: 429 if the queue is full, 503 if the engine is not serving.
        """
        try:
            self.engine.check_open()
        except (QueueFullError, NotServingError) as error:
            self.metrics.count_rejected(error)
            self.metrics.count_slo(UNREAD_CLASS, False)
            raise self._refusal(error) from None

    def _refusal(self, error: QueueFullError | NotServingError) -> ApiError:
        if isinstance(error, QueueFullError):
            return ApiError(
                429, str(error), code="queue_full", retry_after_s=error.retry_after_s
            )
        return ApiError(
            503,
            str(error) or "the engine is not serving",
            code=self.engine.health.value,
            retry_after_s=_NOT_SERVING_RETRY_S,
        )

    async def complete(self, body: CompletionRequest, arrival: Arrival) -> Reply:
        """Starts a completion.

        Raises:
          ApiError: if it is refused.
        """
        self._check(body)
        prompts = []
        for prompt in split_prompts(body.prompt):
            tokens = await encode_prompt(
                self.tokenizer, prompt, vocab_size=self.engine.vocab_size
            )
            max_tokens = limits.max_tokens(
                "max_tokens",
                body.max_tokens,
                default=_DEFAULT_COMPLETION_TOKENS,
                num_prompt_tokens=len(tokens),
                context_tokens=self.context_tokens,
            )
            echo = ""
            if body.echo:
                echo = (
                    prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)
                )
            prompts.append(_Prompt(tokens=tokens, max_tokens=max_tokens, echo=echo))
        return self._open(body, prompts, arrival, best_of=body.best_of)

    async def chat(self, body: ChatRequest, arrival: Arrival) -> Reply:
        """Starts the next turn of a chat.

        Raises:
          ApiError: if it is refused.
        """
        self._check(body)
        add_generation_prompt = body.add_generation_prompt
        tokens = await encode_chat(
            self.tokenizer,
            body.messages,
            add_generation_prompt=add_generation_prompt is not False,
            vocab_size=self.engine.vocab_size,
            fields=self._fields,
        )
        name, asked = "max_completion_tokens", body.max_completion_tokens
        if asked is None and body.max_tokens is not None:
            name, asked = "max_tokens", body.max_tokens
        max_tokens = limits.max_tokens(
            name,
            asked,
            default=None,
            num_prompt_tokens=len(tokens),
            context_tokens=self.context_tokens,
        )
        prompt = _Prompt(tokens=tokens, max_tokens=max_tokens)
        return self._open(body, [prompt], arrival, best_of=None)

    def _check(self, body: GenerationRequest) -> None:
        if body.model is not None and body.model != self.model_name:
            raise unknown_model(body.model, self.model_name)
        self._fields.check(body.model_extra)
        if body.stream_options is not None:
            if not body.stream:
                raise ApiError(
                    400,
                    "stream_options is for streams; set stream=true",
                    param="stream_options",
                )
            self._fields.check(body.stream_options.model_extra, where="stream_options.")

    def _open(
        self,
        body: GenerationRequest,
        prompts: Sequence[_Prompt],
        arrival: Arrival,
        *,
        best_of: int | None,
    ) -> Reply:
        is_chat = isinstance(body, ChatRequest)
        form = AnswerFormat(
            is_chat=is_chat,
            response_id=f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            created_s=int(time.time()),
            model=self.model_name,
            has_usage=bool(body.stream_options and body.stream_options.include_usage),
            has_token_ids=bool(body.return_token_ids),
        )
        num_choices = limits.num_choices(body, best_of)
        num_requests = num_choices * len(prompts)
        max_requests = self.engine.config.max_queued_requests
        if num_requests > max_requests:
            raise ApiError(
                400,
                f"{len(prompts)} prompts times n={num_choices} are {num_requests} "
                f"requests; the limit is max_queued_requests={max_requests}",
                param="n" if num_choices > 1 else "prompt",
            )
        reply = Reply(
            generations=self._generations(body, prompts, arrival, form, num_choices),
            num_choices=num_choices,
            form=form,
            is_streamed=bool(body.stream),
        )
        try:
            self.router.open(reply)
        except (QueueFullError, NotServingError) as error:
            raise self._refusal(error) from None
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        return reply

    def _generations(
        self,
        body: GenerationRequest,
        prompts: Sequence[_Prompt],
        arrival: Arrival,
        form: AnswerFormat,
        num_choices: int,
    ) -> list[Generation]:
        promise = self.classes.promise(
            slo=body.slo, headers=arrival.headers, service_tier=body.service_tier
        )
        sampling = limits.sampling(body)
        stops = limits.stop_strings(body)
        stop_ids = limits.stop_token_ids(
            body,
            eos_token_ids=self.tokenizer.eos_token_ids,
            vocab_size=self.engine.vocab_size,
        )
        generations: list[Generation] = []
        for prompt in prompts:
            for choice in range(num_choices):
                request = Request(
                    request_id=f"{form.response_id}-{len(generations)}",
                    arrival_s=arrival.time_s,
                    prompt_tokens=prompt.tokens,
                    max_tokens=prompt.max_tokens,
                    min_tokens=limits.min_tokens(body, prompt.max_tokens),
                    stop_token_ids=stop_ids,
                    slo=promise.slo,
                    service_class=promise.service_class,
                    guard=promise.guard,
                    sampling=dataclasses.replace(
                        sampling, seed=limits.nth_seed(sampling.seed, choice)
                    ),
                )
                generations.append(
                    Generation(
                        request=request,
                        tokenizer=self.tokenizer,
                        finder=StopFinder(
                            stops, keep_stop=bool(body.include_stop_str_in_output)
                        ),
                        metrics=self.metrics,
                        prefix=prompt.echo,
                    )
                )
        return generations


def unknown_model(name: str, known: str) -> ApiError:
    """Returns the refusal of a model that is not served."""
    return ApiError(
        404,
        f"the model {name[:80]!r} does not exist; this server has {known!r}",
        param="model",
        code="model_not_found",
    )
