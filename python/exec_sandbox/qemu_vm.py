"""VMs by hand: what `exec_sandbox.vm_manager.VmManager` makes."""

from __future__ import annotations

import contextlib
from typing import IO, TYPE_CHECKING

from exec_sandbox import _files, _native, _requests, _results
from exec_sandbox._streams import Listeners, heard
from exec_sandbox.exceptions import SandboxError
from exec_sandbox.platform_utils import ProcessWrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

    from exec_sandbox.models import ExecutionResult, ExposedPort, FileInfo, Language


class GuestChannel:
    """The connection to the agent in a VM. Closed, the VM lives on as an orphan: what runs goes on, and the agent sleeps."""

    def __init__(self, native: _native.Vm) -> None:
        """Not to be called: it is `QemuVM.channel`."""
        self._native = native

    async def close(self) -> None:
        """Lets the connection go. Closing what is closed does nothing, and that of a VM that has ended is."""
        # All that it may say is that the VM has ended.
        with contextlib.suppress(SandboxError):
            await self._native.close_channel()

    async def connect(self) -> None:
        """Connects again; returns when the agent has answered. An execution would do so by itself."""
        await self._native.open_channel()


class QemuVM:
    """A VM: one QEMU process, and one more if it has a network. It lives until it is destroyed or its manager stops."""

    def __init__(self, native: _native.Vm, language: Language) -> None:
        """Not to be called: `VmManager.create_vm` makes VMs."""
        self._native = native
        self.language = language
        self.vm_id = native.vm_id
        self.channel = GuestChannel(native)
        self.process = ProcessWrapper(native.process, native)
        gateway = native.gateway
        self.gvproxy_proc = None if gateway is None else ProcessWrapper(gateway, native)
        self.exposed_ports: list[ExposedPort] = _results.of_ports(native.exposed_ports)
        boot = native.boot
        self.setup_ms = round(boot["prepare"] * 1000)
        self.boot_ms = round((boot["spawn"] + boot["guest_wait"]) * 1000)
        start = boot["gateway_start"]
        self.gvproxy_start_ms = None if start is None else round(start * 1000)
        self.qemu_fork_ms = round(boot["spawn"] * 1000)
        guest_wait = round(boot["guest_wait"] * 1000)
        self.l1_restore_ms = guest_wait if boot["origin"] in _results.RESTORED else None
        self.guest_wait_ms = guest_wait if boot["origin"] == _results.COLD else None

    async def execute(
        self,
        code: str,
        timeout_seconds: float | None = None,
        env_vars: Mapping[str, str] | None = None,
        on_stdout: Callable[[str], None] | None = None,
        on_stderr: Callable[[str], None] | None = None,
    ) -> ExecutionResult:
        """Runs `code`; see `Session.exec`. Cancelling ends the VM."""
        listeners = Listeners(on_stdout=on_stdout, on_stderr=on_stderr)
        program = _requests.program(code, timeout_seconds=timeout_seconds, env_vars=env_vars)
        return _results.of_exec(await heard(lambda stream: self._native.exec(program, stream), listeners))

    async def write_file(
        self, path: str, content: bytes | PathLike[str] | IO[bytes], *, make_executable: bool = False
    ) -> None:
        """Writes a file; see `Session.write_file`."""
        await self._native.write_file(path, _files.content(content), make_executable)

    async def read_file(self, path: str, *, destination: PathLike[str] | IO[bytes]) -> None:
        """Reads a file; see `Session.read_file`."""
        await self._native.read_file(path, _files.destination(destination))

    async def list_files(self, path: str = "") -> list[FileInfo]:
        """Lists a directory; see `Session.list_files`."""
        return _results.of_list(await self._native.list_files(path))

    async def ping(self) -> float:
        """Asks the agent whether it is there, also while a program runs; how long the answer took, in seconds."""
        return await self._native.ping()

    async def destroy(self) -> bool:
        """Ends the VM; returns when its processes are confirmed dead and its files are gone. May be called again.

        Returns True; a VM whose death cannot be confirmed raises `SandboxError`, and its owner keeps trying.
        """
        await self._native.destroy()
        return True
