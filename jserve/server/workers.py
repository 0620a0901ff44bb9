"""Reads large bodies, and chats of foreign templates, in processes of their own.

Decoding, templates and tokenizers hold the interpreter's lock, so that in a thread they
would keep all streams waiting. A worker's time and memory are limited; one that exceeds
them ends, the request is refused, and the next request gets a new worker.
"""

import asyncio
import contextlib
import functools
import logging
import mmap
import pathlib
import resource
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_process

from jserve.server.bodies import SMALL_BODY_BYTES, Body
from jserve.server.chat_request import ChatRequest
from jserve.server.errors import ApiError
from jserve.server.prompts import Asked, BodyReader
from jserve.server.protocol import CompletionRequest, GenerationRequest
from jserve.text.tokenizer import Tokenizer, load_tokenizer

_LOGGER = logging.getLogger(__name__)
_NUM_WORKERS = 2
_MEMORY_BYTES = 2**30  # beyond what a worker has at its start
_STOP_TIMEOUT_S = 5.0
_START_S = 1.0  # after which another may start
_CPU_S = 0.5
_CPU_S_A_BYTE = 2e-6
_TRIAL = b'{"messages": [{"role": "user", "content": "Hello"}]}'


@functools.cache
def _tokenizer(*source: Any) -> Tokenizer:
    """Returns the tokenizer of this worker, whose memory is limited from now on."""
    tokenizer = load_tokenizer(*source)
    for number in (signal.SIGINT, signal.SIGTERM):  # of a group; the server drains
        signal.signal(number, signal.SIG_IGN)
    size = pathlib.Path("/proc/self/statm")
    if size.exists():  # on Linux
        pages = int(size.read_text().split()[0])
        most = pages * resource.getpagesize() + _MEMORY_BYTES
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return tokenizer


def _read(
    reader: BodyReader,
    source: tuple[Any, ...],
    model: type[GenerationRequest],
    path: str,
    num_bytes: int,
    encoding: str,
) -> Asked:
    """Reads a body in a worker, without a copy of it."""
    tokenizer = _tokenizer(*source)
    with open(path, "r+b") as file:
        file.truncate(num_bytes + 1)  # marks it, see `Body.is_marked`
        mapped = mmap.mmap(file.fileno(), num_bytes + 1, access=mmap.ACCESS_READ)
    data = memoryview(mapped)[:num_bytes]
    # The kernel ends the process at the limit, whatever code it is in.
    limit_s = _CPU_S + _CPU_S_A_BYTE * num_bytes
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        return reader.read(tokenizer, model, data, encoding)
    except MemoryError:
        raise _too_much(model) from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _too_much(model: type[GenerationRequest]) -> ApiError:
    is_chat = model is not CompletionRequest
    what = "the chat template or the tokenizer" if is_chat else "reading"
    return ApiError(
        f"{what} took more time or memory for this request than is allowed: "
        f"{_CPU_S:g} s and {_CPU_S_A_BYTE * 1e6:g} s a megabyte, "
        f"{_MEMORY_BYTES // 2**20} MiB",
        model.content,
    )


class BodyReaders:
    """Reads small bodies at once, and others in workers."""

    def __init__(self, reader: BodyReader, tokenizer: Tokenizer):
        self.reader = reader
        self._tokenizer = tokenizer
        self._limiter = anyio.CapacityLimiter(_NUM_WORKERS)

    async def read(
        self, model: type[GenerationRequest], body: Body, encoding: str = ""
    ) -> Asked:
        """Returns what a body asks for.

        Raises:
          ApiError: If the request is refused; 503 if no worker can be started.
        """
        source = self._tokenizer.source
        is_foreign = source[0] is not None and model is not CompletionRequest
        if body.num_bytes <= SMALL_BODY_BYTES and not is_foreign and not encoding:
            return self.reader.read(self._tokenizer, model, body.data)
        file = body.path(), body.num_bytes
        work = anyio.to_process.run_sync(
            functools.partial(_read, self.reader, source, model, *file, encoding),
            cancellable=True,
            limiter=self._limiter,
        )
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return await asyncio.wrap_future(future)
        except ApiError:
            raise
        except Exception as error:
            if body.is_marked():  # the worker had started: it ended for this request
                if isinstance(error, anyio.BrokenWorkerProcess):
                    raise _too_much(model) from None
                raise
            _LOGGER.error("a worker process could not be started", exc_info=error)
            message = "the server cannot start the process that reads this request"
            raise ApiError(message, status=503, retry_after_s=_START_S) from None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Lets workers be started, from an event loop in a thread.

        Unlike uvloop, which serves, asyncio's own starts a process without a copy of
        this one, whose threads and memory would make that slow and unsafe.
        """
        runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
        self._loop = runner.get_loop()
        has_stopped = asyncio.Event()

        def run() -> None:
            with runner:  # AnyIO ends the workers when this task ends
                runner.run(has_stopped.wait())

        thread = threading.Thread(target=run, name="jserve-readers", daemon=True)
        thread.start()
        trial = asyncio.create_task(self._try_template())
        try:
            yield
        finally:
            trial.cancel()
            self._loop.call_soon_threadsafe(has_stopped.set)
            thread.join(_STOP_TIMEOUT_S)

    async def _try_template(self) -> None:
        """Starts the workers and tries a folder's chat template, if it has one."""
        if self._tokenizer.source[0] is None or not self._tokenizer.has_template:
            return
        with contextlib.closing(Body(_TRIAL)) as body:
            trials = (self.read(ChatRequest, body) for _ in range(_NUM_WORKERS))
            answers = await asyncio.gather(*trials, return_exceptions=True)
        if errors := [one for one in answers if isinstance(one, BaseException)]:
            message = "a trial of the chat template failed, and so may chats: %s"
            _LOGGER.warning(message, errors[0])
