"""The scheduler: the door of the package for whoever wants code run."""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from typing import TYPE_CHECKING

from exec_sandbox import _config, _native, _requests
from exec_sandbox._streams import Listeners, heard
from exec_sandbox.exceptions import SandboxError
from exec_sandbox.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from exec_sandbox.config import SchedulerConfig
    from exec_sandbox.models import ExecutionResult, Language, PortMapping

_RESULTS = "exec_sandbox._results"


class Scheduler:
    """Runs code in VMs. Used as `async with Scheduler() as scheduler:`; when the block is left, no VM of it is alive.

    It belongs to the process that started it, and may be used from several tasks at once.
    """

    def __init__(self, config: SchedulerConfig | None = None) -> None:
        """Nothing is done before it is started."""
        self._config = config
        self._native: _native.Scheduler | None = None
        self._was_started = False

    @property
    def config(self) -> SchedulerConfig:
        """What it was made with."""
        if self._config is None:
            from exec_sandbox.config import SchedulerConfig  # noqa: PLC0415  # pydantic takes longer than a start

            self._config = SchedulerConfig()
        return self._config

    async def __aenter__(self) -> Self:
        """Examines this machine: QEMU, an accelerator, the image.

        Raises:
            SandboxError: it has been started before.
            VmDependencyError: QEMU is missing or too old.
            AssetNotFoundError, AssetDownloadError, AssetChecksumError: the image is not there, or not whole.

        """
        if self._was_started:
            raise SandboxError("the scheduler is already started; make another one to start again")
        self._was_started = True
        # Models need pydantic, which takes longer to import than a scheduler to start. Nobody needs them before a VM has booted.
        if _RESULTS not in sys.modules:
            threading.Thread(target=import_module, args=(_RESULTS,), name="exec-sandbox-import").start()
        self._native = await _native.Scheduler.start(_config.of_scheduler(self._config))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends every VM, what runs in them included, and returns when all are confirmed dead."""
        native, self._native = self._native, None
        if native is not None:
            await native.close()

    async def run(
        self,
        code: str,
        *,
        language: str | Language,
        packages: Sequence[str] | None = None,
        timeout_seconds: float | None = None,
        memory_mb: int | None = None,
        allow_network: bool = False,
        allowed_domains: Sequence[str] | None = None,
        expose_ports: Sequence[PortMapping | int] | None = None,
        env_vars: Mapping[str, str] | None = None,
        on_stdout: Callable[[str], None] | None = None,
        on_stderr: Callable[[str], None] | None = None,
        on_boot_log: Callable[[str], None] | None = None,
    ) -> ExecutionResult:
        """Runs `code` in a fresh VM, and returns once the VM is confirmed dead.

        A program that fails is a result with its exit code; an exception means that the sandbox failed or that the request is
        wrong. Cancelling ends the VM.

        Args:
            code: The source, at most 1,048,576 characters.
            language: `python`, `javascript` (TypeScript too) or `raw` (a shell).
            packages: What is installed, each pinned to one version; see docs/packages.md.
            timeout_seconds: Time of the program: 1 to 300 s. None: the configuration's.
            memory_mb: Memory of the VM in MiB, at least 128. None: the configuration's.
            allow_network: Whether the program reaches the network.
            allowed_domains: Which domains. None: those that the language's packages come from; empty: all.
            expose_ports: Ports of the guest that the host reaches, at most 10.
            env_vars: Environment variables, at most 100.
            on_stdout: Called with what the program writes, as it arrives, on the event loop's thread.
            on_stderr: The same for its standard error.
            on_boot_log: The same for what an installer of packages and the guest's kernel say. It slows the boot.

        Raises:
            ValueError, InputValidationError, VmConfigError, PackageNotAllowedError: the request is wrong; nothing was tried.
            TransientError: the code did not run; the same request may be sent again.
            PackageInstallPermanentError: the packages cannot be installed; the code did not run.
            CommunicationOutcomeUnknownError: the VM was lost while the code may have run.
            OutputLimitError: it wrote more than is kept; what came before was streamed.

        """
        native = self._started()
        listeners = Listeners(on_stdout=on_stdout, on_stderr=on_stderr, on_boot_log=on_boot_log)
        vm = _requests.vm(
            language=language,
            memory_mb=memory_mb,
            packages=packages,
            allow_network=allow_network,
            allowed_domains=allowed_domains,
            expose_ports=expose_ports,
        )
        program = _requests.program(code, timeout_seconds=timeout_seconds, env_vars=env_vars)
        outcome = await heard(lambda stream: native.run(vm, program, stream, listeners.wants_boot_log), listeners)
        from exec_sandbox import _results  # noqa: PLC0415  # pydantic is imported beside the first boot

        return _results.of_run(outcome)

    async def session(
        self,
        *,
        language: str | Language,
        packages: Sequence[str] | None = None,
        memory_mb: int | None = None,
        allow_network: bool = False,
        allowed_domains: Sequence[str] | None = None,
        expose_ports: Sequence[PortMapping | int] | None = None,
        idle_timeout_seconds: float | None = None,
        on_boot_log: Callable[[str], None] | None = None,
    ) -> Session:
        """Starts a session: a VM that is kept for many executions. Used as `async with await scheduler.session(...)`.

        Args and exceptions are those of `run`; `idle_timeout_seconds` is the time without an operation after which it ends: 10 to
        3600 s, None: the configuration's.
        """
        native = self._started()
        listeners = Listeners(on_boot_log=on_boot_log)
        vm = _requests.vm(
            language=language,
            memory_mb=memory_mb,
            packages=packages,
            allow_network=allow_network,
            allowed_domains=allowed_domains,
            expose_ports=expose_ports,
        )
        patience = _requests.idle_timeout(idle_timeout_seconds)
        return await Session._start(  # noqa: SLF001  # the one who may
            lambda stream: native.session(vm, patience, stream), listeners
        )

    async def wait_pool_ready(self, timeout: float = 120) -> None:
        """Waits until `warm_pool_size` VMs of each language are ready; at once if that is 0.

        Raises `VmBootTimeoutError` if they are not within `timeout` seconds. They are made further.
        """
        await self._started().wait_pool_ready(timeout)

    def _started(self) -> _native.Scheduler:
        if self._native is None:
            state = "has been left" if self._was_started else "is not started"
            raise SandboxError(f"the scheduler {state}: use it inside of `async with Scheduler() as scheduler:`")
        return self._native
