"""This platform: where caches are, and processes as their observers see them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from exec_sandbox import _native


def get_cache_dir(app_name: str = "exec-sandbox") -> Path:
    """Where what can be made again is kept; the same place that the Rust half finds."""
    if app_name == "exec-sandbox" and (own := os.environ.get("EXEC_SANDBOX_CACHE_DIR")):
        return Path(own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / app_name
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / app_name


class ProcessWrapper:
    """A process of a VM: QEMU itself, or its network gateway."""

    def __init__(self, native: _native.Process, vm: _native.Vm) -> None:
        """Not to be called: VMs have them."""
        self._native = native
        self._vm = vm

    @property
    def pid(self) -> int:
        """Its number, which may be another process's once this one has ended."""
        return self._native.pid

    @property
    def returncode(self) -> int | None:
        """None while it lives; then its exit code, or the signal that ended it below zero."""
        return self._native.returncode

    @cached_property
    def psutil_proc(self) -> psutil.Process | None:
        """It, for `psutil`. None: it had ended when it was first asked for."""
        try:
            process = psutil.Process(self.pid)
        except psutil.NoSuchProcess:
            return None
        # What was looked up is this process if it lives even now: until then nobody else had its number.
        return process if self._native.is_alive() else None

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended. A zombie has."""
        return self._native.is_alive()

    async def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._native.is_alive()

    async def wait(self) -> int | None:
        """Waits for its end, and says how it ended."""
        return await self._native.ended()

    async def wait_with_timeout(self, timeout: float) -> int | None:
        """The same, for at most `timeout` seconds; raises `TimeoutError`."""
        try:
            return await asyncio.wait_for(self._native.ended(), timeout)
        except asyncio.TimeoutError as late:
            # Before Python 3.11 it is another one.
            raise TimeoutError(f"process {self.pid} has not ended within {timeout} s") from late

    async def terminate(self) -> None:
        """Sends it SIGTERM. Of a VM, that is its end: prefer `QemuVM.destroy`."""
        self._native.signal(signal.SIGTERM)

    async def kill(self) -> None:
        """Sends it SIGKILL. Of a VM, that is its end: prefer `QemuVM.destroy`."""
        self._native.signal(signal.SIGKILL)

    async def end(self, patience: float) -> None:
        """Ends the VM that it belongs to: QEMU is asked to end, and killed if it has not after `patience` seconds."""
        await self._vm.destroy(patience)
