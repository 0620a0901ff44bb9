"""A server whose answer reasons, says something and calls a tool twice."""

import contextlib
from collections.abc import Iterator

from jserve.config import EngineConfig
from jserve.text.tokenizer import load_tokenizer
from tests import TESTS
from tests.fake_loop import FakeLoop
from tests.fake_server import Served, serve_fake

FOLDER = TESTS / "golden" / "chats" / "qwen2_5"
CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "Rome"}}\n</tool_call>'


@contextlib.contextmanager
def serve_calls() -> Iterator[Served]:
    """The server, with the tokenizer and the template of Qwen 2.5."""
    tokenizer = load_tokenizer(FOLDER)
    answer = f"<think>\nso\n</think>\n\nI look.\n{CALL}\n{CALL}"
    script = [*tokenizer.encode_part(answer), *sorted(tokenizer.eos_token_ids)]
    loop = FakeLoop(lambda request: script, config=EngineConfig(model=str(FOLDER)))
    loop.vocab_size = 200_000
    with serve_fake(loop, tokenizer=tokenizer, reasoning_parser="think") as served:
        yield served
