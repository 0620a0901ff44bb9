"""Whether a request can ever run."""

import dataclasses
import reprlib


class TooLongError(ValueError):
    """A request can never run: it exceeds what a single request may hold."""


@dataclasses.dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a single request may hold: what the model takes, and what the pool holds."""

    max_model_len: int
    num_kv_tokens: int

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and output together that can run."""
        return min(self.max_model_len, self.num_kv_tokens)

    def check(
        self, num_prompt_tokens: int, max_tokens: int, name: str = "max_tokens"
    ) -> None:
        """Raises TooLongError unless a request of this size can ever run.

        `name` is that of `max_tokens` in the message.
        """
        limit, room = self.context_tokens, self.context_tokens - num_prompt_tokens
        noun = "context" if limit == self.max_model_len else "KV pool"
        if room < 1:
            raise TooLongError(
                f"the prompt has {num_prompt_tokens} tokens; the {noun} is {limit} "
                "tokens, prompt and at least 1 of output together"
            )
        if max_tokens > room:
            raise TooLongError(
                f"{name}={reprlib.repr(max_tokens)} is over {room}: the {noun} is "
                f"{limit} tokens and the prompt has {num_prompt_tokens}"
            )
