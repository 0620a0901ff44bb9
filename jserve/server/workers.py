"""Reads large bodies, and chats of foreign templates, in processes of their own.

Decoding, templates and tokenizers hold the interpreter's lock, so that in a thread they
would keep all streams waiting. A worker's time and memory are limited; one that exceeds
them ends, the request is refused, and the next request gets a new worker.
"""

import asyncio
import contextlib
import functools
import logging
import pathlib
import resource
import signal
import threading
from collections.abc import AsyncIterator
from typing import cast

import anyio.to_process

from jserve.server.errors import ApiError
from jserve.server.prompts import Asked, BodyReader
from jserve.server.protocol import ChatRequest, GenerationRequest
from jserve.text.tokenizer import Tokenizer, load_tokenizer

SMALL_BODY_BYTES = 2**14  # read on the event loop, in some milliseconds at most
_NUM_WORKERS = 2
_MEMORY_BYTES = 2**30  # beyond what a worker has at its start
_STOP_TIMEOUT_S = 5.0
_CPU_S = 0.5
_CPU_S_A_BYTE = 2e-6
_TRIAL = b'{"messages": [{"role": "user", "content": "Hello"}]}'


@functools.cache
def _tokenizer(folder: pathlib.Path | None) -> Tokenizer:
    """Returns the tokenizer of this worker, whose memory is limited from now on."""
    tokenizer = load_tokenizer(folder)
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


class _Body:
    """A body on its way to a worker, which is emptied here as soon as it is copied."""

    def __init__(self, data: bytearray):
        self._data = data

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        data = bytes(self._data)
        self._data.clear()  # the copy, and that in the pipe, take enough memory
        return bytes, (data,)


def _read(
    reader: BodyReader,
    folder: pathlib.Path | None,
    model: type[GenerationRequest],
    data: bytes,
    encoding: str,
) -> Asked:
    """Reads a body in a worker."""
    tokenizer = _tokenizer(folder)
    # The kernel ends the process at the limit, whatever code it is in.
    limit_s = _CPU_S + _CPU_S_A_BYTE * len(data)
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        return reader.read(tokenizer, model, data, encoding)
    except MemoryError:
        raise _too_much(model) from None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _too_much(model: type[GenerationRequest]) -> ApiError:
    what = "the chat template or the tokenizer" if model is ChatRequest else "reading"
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
        self, model: type[GenerationRequest], data: bytearray, encoding: str = ""
    ) -> Asked:
        """Returns what a body asks for; empties a large one.

        Raises:
          ApiError: If the request is refused.
        """
        folder = self._tokenizer.folder
        is_foreign = folder is not None and model is ChatRequest
        if len(data) <= SMALL_BODY_BYTES and not is_foreign and not encoding:
            return self.reader.read(self._tokenizer, model, data)
        body = cast(bytes, _Body(data))  # which it is once it is there
        work = anyio.to_process.run_sync(
            functools.partial(_read, self.reader, folder, model, body, encoding),
            cancellable=True,
            limiter=self._limiter,
        )
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return await asyncio.wrap_future(future)
        except anyio.BrokenWorkerProcess:
            raise _too_much(model) from None

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
        if self._tokenizer.folder is None or not self._tokenizer.has_template:
            return
        trials = (
            self.read(ChatRequest, bytearray(_TRIAL)) for _ in range(_NUM_WORKERS)
        )
        for error in await asyncio.gather(*trials, return_exceptions=True):
            if isinstance(error, BaseException):
                logging.getLogger(__name__).warning(
                    "a trial of the chat template failed, and so may chats: %s", error
                )
                break
