"""What is raised when the sandbox fails. A program that fails is a result, and no exception.

The tree is the retry contract. `TransientError`: the code did not run, and the same request may be sent again. `PermanentError` and
`InputValidationError`: it would fail again. `CommunicationOutcomeUnknownError`: the code may have run, so it is neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

_Error = TypeVar("_Error", bound=BaseException)


def _revive(kind: type[_Error], args: tuple[Any, ...]) -> _Error:
    """An exception as it was before its `__init__`, which may want arguments that `args` does not have."""
    return kind.__new__(kind, *args)


class SandboxError(Exception):
    """The sandbox could not do what was asked.

    Attributes:
        message: The text, which is also `str(error)`.
        context: What is known about it, such as `vm_id`, `operation`, `reason` and `remedy`.

    """

    def __init__(self, message: str, context: Mapping[str, Any] | None = None) -> None:
        """Keeps a copy of `context`."""
        super().__init__(message)
        self.message = message
        self.context: dict[str, Any] = dict(context or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled with all attributes, of whichever subclass."""
        return _revive, (type(self), self.args), self.__dict__.copy()


class TransientError(SandboxError):
    """The code did not run: the same request may be sent again."""


class PermanentError(SandboxError):
    """The same request would fail again."""


class VmTransientError(TransientError):
    """A VM could not be had, or was lost before the code was sent to it."""


class VmBootTimeoutError(VmTransientError):
    """A VM did not come up in time."""


class VmOverlayError(VmTransientError):
    """The disk of a VM could not be prepared.

    Attributes:
        stderr: What the tool that failed wrote.
        error_class: What QEMU calls the error.

    """

    def __init__(
        self,
        message: str,
        context: Mapping[str, Any] | None = None,
        stderr: str = "",
        error_class: str | None = None,
    ) -> None:
        """Keeps what the tool said."""
        super().__init__(message, context)
        self.stderr = stderr
        self.error_class = error_class


class VmQemuCrashError(VmTransientError):
    """QEMU ended before the code was sent.

    Attributes:
        diagnostics: What was found out about it.

    """

    def __init__(
        self,
        message: str,
        context: Mapping[str, Any] | None = None,
        *,
        diagnostics: Any = None,  # noqa: ANN401  # the public signature
    ) -> None:
        """Keeps what was found out."""
        super().__init__(message, context)
        self.diagnostics = diagnostics


class VmGvproxyError(VmTransientError):
    """The network gateway of a VM could not be started."""


class VmCapacityError(VmTransientError):
    """No memory or processor became free in time."""


class PackageInstallTransientError(TransientError):
    """Packages could not be installed for now."""


class BalloonTransientError(TransientError):
    """Memory of a VM could not be taken or given back."""


class MigrationTransientError(TransientError):
    """The memory of a VM could not be saved or restored."""


class VmPermanentError(PermanentError):
    """What was asked of a VM cannot be done."""


class VmConfigError(VmPermanentError):
    """A value for a VM is out of its range, or asks for what there is not."""


class VmDependencyError(VmPermanentError):
    """Something that VMs need is missing on this host, or too old."""


class PackageInstallPermanentError(PermanentError):
    """Packages cannot be installed."""


class SessionClosedError(PermanentError):
    """The session is over."""


class OutputLimitError(PermanentError):
    """The program wrote more than is kept. What came before was streamed."""


class InputValidationError(SandboxError):
    """The request is wrong; nothing was tried."""


class CodeValidationError(InputValidationError):
    """The code cannot be run as it is."""


class EnvVarValidationError(InputValidationError):
    """An environment variable is not allowed."""


class CommunicationError(SandboxError):
    """A guest could not be talked to."""


class SocketAuthError(CommunicationError):
    """Somebody else serves a socket.

    Attributes:
        expected_uid: The user that should.
        actual_uid: The user that does.

    """

    def __init__(
        self, message: str, expected_uid: int, actual_uid: int, context: Mapping[str, Any] | None = None
    ) -> None:
        """Keeps both users."""
        super().__init__(message, context)
        self.expected_uid = expected_uid
        self.actual_uid = actual_uid


class CommunicationOutcomeUnknownError(SandboxError):
    """The VM was lost after the code had been sent: it may have run. Whether it may run again, only its author knows."""


class GuestAgentError(SandboxError):
    """The agent in the guest refused.

    Attributes:
        response: What it said.

    """

    def __init__(self, message: str, response: Mapping[str, Any]) -> None:
        """`context` has what the response has, and the response itself."""
        super().__init__(message, {**response, "response": response})
        self.response = response


class PackageNotAllowedError(SandboxError):
    """A package is not in the list of those that may be installed, or its version is not pinned."""


class SnapshotError(SandboxError):
    """A snapshot could not be taken or used."""


class SandboxDependencyError(SandboxError):
    """An optional part of the package is not installed."""


class AssetError(SandboxError):
    """The image that VMs boot cannot be used."""


class AssetDownloadError(AssetError):
    """The image could not be downloaded."""


class AssetChecksumError(AssetError):
    """A file of the image is not what its manifest says."""


class AssetNotFoundError(AssetError):
    """The image is not there."""


VmError = VmPermanentError
VmTimeoutError = VmBootTimeoutError
VmBootError = VmTransientError
QemuImgError = VmOverlayError
QemuStorageDaemonError = VmOverlayError
BalloonError = BalloonTransientError
