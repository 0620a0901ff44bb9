"""Reads large bodies, and chats of foreign templates, in processes of their own.

Decoding, templates and tokenizers hold the interpreter's lock, so that in a thread they
would keep all streams waiting. A worker's time and memory are limited; one that exceeds
them ends, the request is refused, and the next request gets a new worker.
"""

import asyncio
import functools
import logging
import pathlib
import resource
import signal

import anyio.to_process

from jserve.server.errors import ApiError
from jserve.server.prompts import Asked, BodyReader
from jserve.server.protocol import ChatRequest, GenerationRequest
from jserve.text.tokenizer import Tokenizer, load_tokenizer

SMALL_BODY_BYTES = 2**14  # read on the event loop, in some milliseconds at most
_NUM_WORKERS = 2
_MEMORY_BYTES = 2**30  # beyond what a worker has at its start
_CPU_S = 0.5
_CPU_S_A_BYTE = 2e-6
_TRIAL = b'{"messages": [{"role": "user", "content": "Hello"}]}'


@functools.cache
def _tokenizer(folder: pathlib.Path | None) -> Tokenizer:
    """Returns the tokenizer of this worker, whose memory is limited from now on."""
    tokenizer = load_tokenizer(folder)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the server drains
    size = pathlib.Path("/proc/self/statm")
    if size.exists():  # on Linux
        pages = int(size.read_text().split()[0])
        most = pages * resource.getpagesize() + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    return tokenizer


def _read(
    reader: BodyReader,
    folder: pathlib.Path | None,
    model: type[GenerationRequest],
    data: bytes | bytearray,
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
        self,
        model: type[GenerationRequest],
        data: bytes | bytearray,
        encoding: str = "",
    ) -> Asked:
        """Returns what a body asks for.

        Raises:
          ApiError: If the request is refused.
        """
        folder = self._tokenizer.folder
        is_foreign = folder is not None and model is ChatRequest
        if len(data) <= SMALL_BODY_BYTES and not is_foreign and not encoding:
            return self.reader.read(self._tokenizer, model, data)
        try:
            return await anyio.to_process.run_sync(
                _read,
                self.reader,
                folder,
                model,
                data,
                encoding,
                cancellable=True,
                limiter=self._limiter,
            )
        except anyio.BrokenWorkerProcess:
            raise _too_much(model) from None

    async def start(self) -> None:
        """Starts the workers and tries a folder's chat template, if it has one."""
        if self._tokenizer.folder is None or not self._tokenizer.has_template:
            return
        trials = (self.read(ChatRequest, _TRIAL) for _ in range(_NUM_WORKERS))
        for error in await asyncio.gather(*trials, return_exceptions=True):
            if isinstance(error, BaseException):
                logging.getLogger(__name__).warning(
                    "a trial of the chat template failed, and so may chats: %s", error
                )
                break
