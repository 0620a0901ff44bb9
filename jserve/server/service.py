"""Makes requests and a reply of a request's body, and submits them to the engine."""

import dataclasses
import math
import time
import uuid
from collections.abc import Mapping

from anyio import CapacityLimiter, to_thread

from jserve.engine.interface import ServingEngine
from jserve.records.events import NotServingError, QueueFullError
from jserve.server.answer_text import answer_text, opens_reasoning
from jserve.server.block_answers import WRITERS, BlockFormat
from jserve.server.bodies import largest_honest_body
from jserve.server.chat_request import ChatRequest
from jserve.server.errors import ApiError, printable, quote
from jserve.server.formats import AnswerFormat
from jserve.server.generation import Generation
from jserve.server.metrics import ServerMetrics
from jserve.server.prompts import Asked, BodyReader
from jserve.server.protocol import GenerationRequest, StreamOptions
from jserve.server.replies import Reply, TokenRouter
from jserve.server.sampling_input import SEEDS, sampling_params, scores_prompt
from jserve.server.slo_input import UNREAD_CLASS, ServiceClasses, read_priority
from jserve.server.structured_input import asked_constraint
from jserve.server.tracing import Tracer
from jserve.server.workers import BodyReaders
from jserve.server_config import ServerConfig
from jserve.text.answer_parts import ToolForm, find_tool_form
from jserve.text.constraints import Constraint, Constraints, GivenTokens
from jserve.text.tokenizer import Tokenizer
from jserve_sched.requests.request import MAX_STOP_TOKENS, Request
from jserve_sched.requests.slo import Slo

_NOT_SERVING_RETRY_S = 5.0
_MAX_MAKING = 2  # constraints at a time, each in a thread
_PREFIXES = {"completions": "cmpl-", "chat": "chatcmpl-", "messages": "msg_"}  # of ids
_MAX_MESSAGE_CHARS = 1000  # of a faulty constraint


def _reason(refusal: ApiError) -> str:
    return "queue_full" if refusal.status == 429 else "not_serving"


def _is_asked(logprobs: int | bool | None) -> bool:
    """Returns whether log-probabilities are; 0 asks for those of the tokens alone."""
    return logprobs is not None and logprobs is not False


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
        own = (engine.model_name, engine.config.model)  # as shown, and as typed
        self.model_names = tuple(map(printable, config.served_model_name or own[:1]))
        self.model_name = self.model_names[0]
        self.max_body_bytes = config.max_body_bytes or largest_honest_body(
            engine.limits.context_tokens
        )
        reader = BodyReader(
            model_names=tuple(map(printable, config.served_model_name or own)),
            vocab_size=engine.vocab_size,
            limits=engine.limits,
            max_requests=engine.config.max_queued_requests,
            max_body_bytes=self.max_body_bytes,
        )
        self.readers = BodyReaders(reader, tokenizer)
        self._constraints = Constraints(tokenizer, engine.vocab_size)
        self._making = CapacityLimiter(_MAX_MAKING)
        self.metrics = ServerMetrics(engine, self.model_name)
        self.router = TokenRouter(engine, self.metrics)
        endpoint = config.otlp_endpoint
        self.tracer = Tracer(endpoint, self.model_name) if endpoint else None

    def check_open(self) -> None:
        """Refuses a request before its body is read, if it could not even be queued.

        Raises:
          ApiError: 429 if the queue is full, 503 if the engine is not serving.
        """
        try:
            self.engine.check_open()
        except (QueueFullError, NotServingError) as error:
            refusal = self.refusal(error)
            self.metrics.count_rejected(_reason(refusal), UNREAD_CLASS)
            raise refusal from None

    def refusal(self, error: QueueFullError | NotServingError) -> ApiError:
        """Returns the answer to a request that the engine does not take."""
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
        self, asked: Asked, headers: Mapping[str, str], arrival_s: float
    ) -> Reply:
        """Starts a completion, or the next turn of a chat.

        Args:
          headers: HTTP headers, with names in lower case.
          arrival_s: Time of arrival, by `time.monotonic`.

        Raises:
          ApiError: If the request is refused.
        """
        constraint = await self._constraint(asked.body)
        reply = self.reply(asked, headers, arrival_s, constraint)
        try:
            await to_thread.run_sync(self.router.open, reply)
        except (QueueFullError, NotServingError) as error:
            refusal = self.refusal(error)
            for request in (one.request for one in reply.generations):
                is_attained = request.slo.is_best_effort
                name = request.service_class
                self.metrics.count_rejected(
                    _reason(refusal), name, is_attained=is_attained
                )
            raise refusal from None
        except ValueError as error:
            raise ApiError(str(error)) from None
        return reply

    async def _constraint(self, body: GenerationRequest) -> Constraint | None:
        """Returns what the answer has to be, made in another thread.

        Raises:
          ApiError: 400 if it is wrong, or too large.
        """
        if (asked := asked_constraint(body)) is None:
            return None
        kind, value, name = asked
        try:
            return await to_thread.run_sync(
                self._constraints.make, kind, value, limiter=self._making
            )
        except ValueError as error:
            raise ApiError(f"{name}: {error}"[:_MAX_MESSAGE_CHARS], name) from None

    def reply(
        self,
        asked: Asked,
        headers: Mapping[str, str],
        arrival_s: float,
        constraint: Constraint | None = None,
    ) -> Reply:
        """Returns the reply of `start`, before its requests are submitted."""
        body, prompts = asked.body, asked.prompts
        # The format of the answer, and the number of requests.
        form_class = BlockFormat if asked.door in WRITERS else AnswerFormat
        options = body.stream_options or StreamOptions()
        form = form_class(
            is_chat=isinstance(body, ChatRequest),
            response_id=f"{_PREFIXES.get(asked.door, 'resp_')}{uuid.uuid4().hex}",
            created_s=int(time.time()),
            model=self.model_name,
            door=asked.door,
            echoed=asked.echoed,
            has_usage=bool(options.include_usage),
            has_continuous_usage=bool(options.continuous_usage_stats),
            has_token_ids=bool(body.return_token_ids),
            has_logprobs=_is_asked(getattr(body, "logprobs", None)),
            has_echo=bool(getattr(body, "echo", None)),
            has_prompt_logprobs=body.prompt_logprobs is not None,
            token_bytes=self.tokenizer.token_bytes,
        )
        num_choices = body.n or 1
        num_requests = num_choices * len(prompts)
        # What all requests share.
        slo, service_class = self.classes.choose(
            slo=body.slo,
            headers=headers,
            service_tier=body.service_tier,
            nvext=body.nvext,
        )
        is_scored = scores_prompt(body)
        priority = read_priority(body.priority, headers)
        sampling = sampling_params(body, self.tokenizer, self.engine.vocab_size)
        allowed = body.allowed_token_ids
        if constraint and allowed and not constraint.allows(allowed):
            message = "allowed_token_ids: none may begin what the grammar asks for"
            raise ApiError(message, "allowed_token_ids")
        stop_token_ids = self._stop_token_ids(body)
        min_tokens = body.min_tokens or 0
        fewest = min(prompt.max_tokens for prompt in prompts)
        if min_tokens > fewest:
            message = f"min_tokens={quote(min_tokens)} is not in 0..{fewest}"
            raise ApiError(message, "min_tokens")
        form_of_calls = self._tool_form(body)
        # A request and a generation for each output.
        generations: list[Generation] = []
        for index in range(num_requests):
            prompt = prompts[index // num_choices]
            has_reasoning = self.config.reasoning_parser == "think" and (
                constraint is None
                or (form.is_chat and opens_reasoning(prompt.tokens, self.tokenizer))
            )
            after = self.tokenizer.token_bytes if has_reasoning else None
            given = prompt.tokens[1:] if is_scored else prompt.tokens[:0]
            own = constraint and constraint.copy(after)
            request = Request(
                request_id=f"{form.response_id}-{index}",
                arrival_s=arrival_s,
                prompt_tokens=prompt.tokens[: len(prompt.tokens) - len(given)],
                max_tokens=prompt.max_tokens + len(given),
                min_tokens=min_tokens + len(given),
                stop_token_ids=stop_token_ids,
                slo=Slo() if is_scored else slo,
                service_class=service_class.name,
                guard=service_class.guard,
                weight=service_class.weight,
                priority=priority,
                admission=service_class.admission,
                max_queue_wait_s=service_class.max_queue_wait_s
                or self.engine.config.max_queue_wait_s
                or math.inf,
                sampling=dataclasses.replace(
                    sampling, seed=(sampling.seed + index % num_choices) % SEEDS
                ),
                constraint=GivenTokens(given, own) if len(given) else own,
            )
            generations.append(
                Generation(
                    request=request,
                    tokenizer=self.tokenizer,
                    text=answer_text(
                        body,
                        prompt.tokens,
                        self.tokenizer,
                        form=form_of_calls,
                        has_reasoning=has_reasoning,
                    ),
                    metrics=self.metrics,
                    prefix=prompt.echo,
                    scored=prompt.tokens.tolist() if is_scored else (),
                )
            )
        return Reply(
            generations=generations,
            num_choices=num_choices,
            form=form,
            is_streamed=bool(body.stream),
        )

    def _tool_form(self, body: GenerationRequest) -> ToolForm | None:
        """Returns the form of the model's tool calls, if the answer may have some.

        Raises:
          ApiError: 400 if it is not known.
        """
        if not isinstance(body, ChatRequest) or not body.has_tools:
            return None
        asked = self.config.tool_parser
        if asked == "none" or body.requires_call:
            return None
        if asked != "auto":
            return asked
        form = find_tool_form(self.tokenizer.template_text)
        if form is None:
            message = "tools: the chat template writes calls in no known form; "
            message += "--tool_parser names one, or tool_choice requires a call"
            raise ApiError(message, "tools")
        return form

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
