"""Callbacks: what a VM writes reaches them on the event loop's thread, as it arrives and in order."""

from __future__ import annotations

import asyncio
import codecs
import inspect
import logging
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, TypeVar

from exec_sandbox import _native

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Callback = Callable[[str], None]

_logger = logging.getLogger("exec_sandbox")
_Result = TypeVar("_Result")

BOOT_LOG, STDOUT, STDERR = 0, 1, 2


class Listeners:
    """The callbacks of one call, each with a decoder of its own: a character may come in two pieces."""

    def __init__(
        self,
        *,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
        on_boot_log: Callback | None = None,
    ) -> None:
        """Raises `TypeError` for what cannot be called, or would have to be awaited."""
        given: dict[int, tuple[str, Callback | None]] = {
            BOOT_LOG: ("on_boot_log", on_boot_log),
            STDOUT: ("on_stdout", on_stdout),
            STDERR: ("on_stderr", on_stderr),
        }
        self._callbacks: dict[int, Callback] = {}
        for stream, (name, callback) in given.items():
            if callback is not None:
                self._callbacks[stream] = _checked(name, callback)
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {stream: decoder(errors="replace") for stream in self._callbacks}

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self._callbacks)

    @property
    def wants_boot_log(self) -> bool:
        """Whether the boot log is listened to."""
        return BOOT_LOG in self._callbacks

    def hear(self, pieces: list[tuple[int, bytes]]) -> None:
        """Hands pieces on in their order, neighbours of one stream together."""
        for stream, neighbours in groupby(pieces, key=itemgetter(0)):
            if (decoder := self._decoders.get(stream)) is not None:
                self._tell(stream, decoder.decode(b"".join(data for _, data in neighbours)))

    def end(self) -> None:
        """Hands on what an unfinished character leaves."""
        for stream, decoder in self._decoders.items():
            self._tell(stream, decoder.decode(b"", final=True))

    def _tell(self, stream: int, text: str) -> None:
        callback = self._callbacks.get(stream)
        if callback is None or not text:
            return
        try:
            callback(text)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # that of a task that was cancelled, which it looked at, is one
            _logger.exception("a callback raised, and is not called again for this execution")
            del self._callbacks[stream]


async def forward(stream: _native.OutputStream, listeners: Listeners) -> None:
    """Hands on all that comes, until there will be no more."""
    while (pieces := await stream.next()) is not None:
        listeners.hear(pieces)
    listeners.end()


async def begun(
    start: Callable[[_native.OutputStream | None], Awaitable[_Result]], listeners: Listeners
) -> tuple[_Result, asyncio.Future[None]]:
    """What `start` comes to, and the task in which its listeners hear what is still to come."""
    stream = _native.OutputStream()
    result = asyncio.ensure_future(start(stream))
    hearing = asyncio.ensure_future(forward(stream, listeners))

    def call_off(hearing: asyncio.Future[None]) -> None:
        # What nobody takes would wait in the guest for ever.
        if hearing.cancelled() or hearing.exception() is not None:
            result.cancel()

    hearing.add_done_callback(call_off)
    try:
        return await result, hearing
    except asyncio.CancelledError:
        # What installs packages goes on without its caller, and nobody listens to it any more.
        hearing.cancel()
        await asyncio.wait({hearing})
        raise
    except BaseException:
        # Whatever became of the call, nobody writes to its stream any more, so this ends.
        await hearing
        raise


async def heard(start: Callable[[_native.OutputStream | None], Awaitable[_Result]], listeners: Listeners) -> _Result:
    """What `start` comes to, once its listeners have heard all of it."""
    if not listeners:
        return await start(None)
    outcome, hearing = await begun(start, listeners)
    await hearing
    return outcome


def _checked(name: str, callback: object) -> Callback:
    if not callable(callback):
        raise TypeError(f"{name} must be callable, not {type(callback).__name__}")
    if inspect.iscoroutinefunction(callback):
        raise TypeError(f"{name} must be a plain function: it is called on the event loop's thread and not awaited")
    return callback
