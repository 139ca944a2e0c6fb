"""Callbacks that raise, as far as no VM has to write: what is a callback's own affair, and what ends its call."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from exec_sandbox import Session
from exec_sandbox._streams import BOOT_LOG, STDERR, STDOUT, Listeners, heard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class _Native:
    """A stream on which one piece comes and then no more, and the session that it is the boot log of."""

    def __init__(self) -> None:
        self._pieces = [(BOOT_LOG, b"Linux\n")]

    async def next(self) -> list[tuple[int, bytes]]:
        if not self._pieces:
            await asyncio.get_running_loop().create_future()
        return [self._pieces.pop()]

    async def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exec_sandbox._native.OutputStream", _Native)


def _raising(error: BaseException) -> Callable[[str], NoReturn]:
    def callback(_text: str) -> NoReturn:
        raise error

    return callback


@pytest.mark.parametrize("error", [KeyError(), asyncio.CancelledError(), GeneratorExit(), pytest.fail.Exception()])
def test_a_callback_that_raises_is_called_no_more_and_the_others_are(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    written: list[str] = []
    listeners = Listeners(on_stdout=_raising(error), on_stderr=written.append)
    listeners.hear([(STDOUT, b"1"), (STDERR, b"2")] * 2)
    listeners.end()
    assert written == ["2", "2"]
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("call", [heard, Session._start])
def test_a_callback_that_ends_the_program_calls_off_its_call(
    call: Callable[..., Any], kind: type[BaseException]
) -> None:
    begun: list[asyncio.Future[Any]] = []

    def start(_stream: object) -> Awaitable[Any]:
        begun.append(asyncio.get_running_loop().create_future())
        return begun[0]

    async def main() -> None:
        await call(start, Listeners(on_boot_log=_raising(kind())))

    loop = asyncio.new_event_loop()
    with contextlib.closing(loop):
        calling = loop.create_task(main())
        with pytest.raises(kind):
            loop.run_until_complete(calling)
        # The loop may go on in spite of it.
        loop.run_until_complete(asyncio.wait({calling}, timeout=10))
        assert calling.cancelled()
        assert begun[0].cancelled()


@pytest.mark.parametrize("end", ["fails", "is cancelled"])
async def test_a_session_is_closed_however_its_boot_log_ended(end: str) -> None:
    native: Any = _Native()
    hearing = asyncio.get_running_loop().create_future()
    session = Session(native, hearing)
    closing = asyncio.ensure_future(session.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait({closing})
    assert not hearing.done(), "a close that is cancelled leaves the boot log to the next one"
    if end == "fails":
        hearing.set_exception(OSError())
        hearing.exception()
    else:
        hearing.cancel()
    await session.close()
    await session.close()
