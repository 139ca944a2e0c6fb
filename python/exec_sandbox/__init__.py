"""Runs untrusted code, each execution in a QEMU microVM of its own.

    async with Scheduler() as scheduler:
        result = await scheduler.run("print(6 * 7)", language="python")

Everything here is loaded when it is first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from exec_sandbox import _logging

if TYPE_CHECKING:
    from exec_sandbox._logging import configure_logging
    from exec_sandbox._native import __version__
    from exec_sandbox.config import SchedulerConfig
    from exec_sandbox.exceptions import (
        AssetChecksumError,
        AssetDownloadError,
        AssetError,
        AssetNotFoundError,
        BalloonTransientError,
        CodeValidationError,
        CommunicationError,
        CommunicationOutcomeUnknownError,
        EnvVarValidationError,
        GuestAgentError,
        InputValidationError,
        MigrationTransientError,
        OutputLimitError,
        PackageInstallPermanentError,
        PackageInstallTransientError,
        PackageNotAllowedError,
        PermanentError,
        SandboxDependencyError,
        SandboxError,
        SessionClosedError,
        SnapshotError,
        SocketAuthError,
        TransientError,
        VmBootError,
        VmBootTimeoutError,
        VmCapacityError,
        VmConfigError,
        VmDependencyError,
        VmError,
        VmGvproxyError,
        VmOverlayError,
        VmPermanentError,
        VmQemuCrashError,
        VmTimeoutError,
        VmTransientError,
    )
    from exec_sandbox.models import ExecutionResult, ExposedPort, FileInfo, Language, PortMapping, TimingBreakdown
    from exec_sandbox.scheduler import Scheduler
    from exec_sandbox.session import Session

__all__ = [
    "AssetChecksumError",
    "AssetDownloadError",
    "AssetError",
    "AssetNotFoundError",
    "BalloonTransientError",
    "CodeValidationError",
    "CommunicationError",
    "CommunicationOutcomeUnknownError",
    "EnvVarValidationError",
    "ExecutionResult",
    "ExposedPort",
    "FileInfo",
    "GuestAgentError",
    "InputValidationError",
    "Language",
    "MigrationTransientError",
    "OutputLimitError",
    "PackageInstallPermanentError",
    "PackageInstallTransientError",
    "PackageNotAllowedError",
    "PermanentError",
    "PortMapping",
    "SandboxDependencyError",
    "SandboxError",
    "Scheduler",
    "SchedulerConfig",
    "Session",
    "SessionClosedError",
    "SnapshotError",
    "SocketAuthError",
    "TimingBreakdown",
    "TransientError",
    "VmBootError",
    "VmBootTimeoutError",
    "VmCapacityError",
    "VmConfigError",
    "VmDependencyError",
    "VmError",
    "VmGvproxyError",
    "VmOverlayError",
    "VmPermanentError",
    "VmQemuCrashError",
    "VmTimeoutError",
    "VmTransientError",
    "__version__",
    "configure_logging",
]

# Where the names above come from that are no exceptions.
_HOMES = {
    "ExecutionResult": "models",
    "ExposedPort": "models",
    "FileInfo": "models",
    "Language": "models",
    "PortMapping": "models",
    "Scheduler": "scheduler",
    "SchedulerConfig": "config",
    "Session": "session",
    "TimingBreakdown": "models",
    "__version__": "_native",
    "configure_logging": "_logging",
}

_logging.prepare()


# Type checkers have seen the imports above; this would make them accept any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Loads `name` when it is first asked for."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'exceptions')}"), name)
        # The next one who asks does not come here.
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """What there is, whether it has been loaded or not."""
    return sorted({*globals(), *__all__})
