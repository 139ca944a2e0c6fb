"""Sessions: one VM kept for many executions, which share what the interpreter holds, and for files."""

from __future__ import annotations

import asyncio
from typing import IO, TYPE_CHECKING

from exec_sandbox import _files, _requests
from exec_sandbox._streams import Listeners, begun, heard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from os import PathLike
    from types import TracebackType

    from typing_extensions import Self

    from exec_sandbox import _native
    from exec_sandbox.models import ExecutionResult, ExposedPort, FileInfo


class Session:
    """A VM that is kept. Made by `Scheduler.session`.

    Executions follow each other; files go in and out beside them. Once it is over, every method raises `SessionClosedError`, which
    says what ended it: `close()`, idleness, an execution that ended with 137, a call that was cancelled, or the loss of its VM.
    """

    def __init__(self, native: _native.Session, hearing: asyncio.Future[None] | None = None) -> None:
        """Not to be called: `Scheduler.session` makes sessions."""
        self._native = native
        self._hearing = hearing

    @classmethod
    async def _start(
        cls, start: Callable[[_native.OutputStream | None], Awaitable[_native.Session]], listeners: Listeners
    ) -> Self:
        if not listeners:
            return cls(await start(None))
        return cls(*await begun(start, listeners))

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        return self._native.closed

    @property
    def vm_id(self) -> str:
        """Its VM's name."""
        return self._native.vm_id

    @property
    def exec_count(self) -> int:
        """Executions that were sent so far."""
        return self._native.exec_count

    @property
    def exposed_ports(self) -> list[ExposedPort]:
        """Ports of the guest that the host reaches. They were open before its VM was started."""
        from exec_sandbox import _results  # noqa: PLC0415  # pydantic is imported beside the first boot

        return _results.of_ports(self._native.exposed_ports)

    async def __aenter__(self) -> Self:
        """Gives the session."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes it."""
        await self.close()

    async def exec(
        self,
        code: str,
        *,
        timeout_seconds: float | None = None,
        env_vars: Mapping[str, str] | None = None,
        on_stdout: Callable[[str], None] | None = None,
        on_stderr: Callable[[str], None] | None = None,
    ) -> ExecutionResult:
        """Runs `code` with the state that executions before it left. Cancelling ends the session.

        Args and exceptions are those of `Scheduler.run`. A request that is refused leaves the session as it was.
        """
        listeners = Listeners(on_stdout=on_stdout, on_stderr=on_stderr)
        program = _requests.program(code, timeout_seconds=timeout_seconds, env_vars=env_vars)
        outcome = await heard(lambda stream: self._native.exec(program, stream), listeners)
        from exec_sandbox import _results  # noqa: PLC0415  # pydantic is imported beside the first boot

        return _results.of_exec(outcome)

    async def write_file(
        self, path: str, content: bytes | PathLike[str] | IO[bytes], *, make_executable: bool = False
    ) -> None:
        """Writes all of `content` to `path`, below /home/user. The file appears whole, when all of it has arrived.

        Args:
            path: Relative to /home/user; directories on the way are made.
            content: Bytes, the path of a file of the host, or an object that is read from; at most 500 MiB.
            make_executable: Whether it may be executed.

        Raises:
            VmPermanentError: the path is not allowed, or the guest could not write.
            ValueError: it exceeds 500 MiB.
            OSError: the file of the host cannot be read.

        """
        await self._native.write_file(path, _files.content(content), make_executable)

    async def read_file(self, path: str, *, destination: PathLike[str] | IO[bytes]) -> None:
        """Reads the file at `path`, below /home/user, into `destination`.

        Args:
            path: Relative to /home/user.
            destination: The path of a file of the host, which appears whole or not at all, or an object that is written to.

        Raises:
            VmPermanentError: the path is not allowed, or there is no such file.
            OSError: the file of the host cannot be written.

        """
        await self._native.read_file(path, _files.destination(destination))

    async def list_files(self, path: str = "") -> list[FileInfo]:
        """What is in the directory at `path`, empty for /home/user; ordered by name.

        Raises:
            VmPermanentError: the path is not allowed, or there is no such directory.

        """
        entries = await self._native.list_files(path)
        from exec_sandbox import _results  # noqa: PLC0415  # pydantic is imported beside the first boot

        return _results.of_list(entries)

    async def close(self) -> None:
        """Ends it; returns when its VM is confirmed dead. May be called again."""
        await self._native.close()
        if self._hearing is not None:
            # However that ends: what came of the boot log is no part of an end.
            await asyncio.wait({self._hearing})
