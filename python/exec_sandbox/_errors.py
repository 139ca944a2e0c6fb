"""Errors of the Rust half as exceptions: here, and only here, a kind becomes a class."""

from __future__ import annotations

import os
from typing import Any

from exec_sandbox import exceptions

_CLASSES: dict[str, type[BaseException]] = {
    "invalid_argument": ValueError,
    "invalid_config": exceptions.VmConfigError,
    "invalid_code": exceptions.CodeValidationError,
    "invalid_env": exceptions.EnvVarValidationError,
    "invalid_path": exceptions.VmPermanentError,
    "package_not_allowed": exceptions.PackageNotAllowedError,
    "package_install": exceptions.PackageInstallPermanentError,
    "package_install_transient": exceptions.PackageInstallTransientError,
    "unknown_vm": exceptions.VmPermanentError,
    "dependency": exceptions.VmDependencyError,
    "asset_not_found": exceptions.AssetNotFoundError,
    "asset_damaged": exceptions.AssetChecksumError,
    "asset_download": exceptions.AssetDownloadError,
    "capacity": exceptions.VmCapacityError,
    "boot_timeout": exceptions.VmBootTimeoutError,
    "vm": exceptions.VmTransientError,
    "gateway": exceptions.VmGvproxyError,
    "outcome_unknown": exceptions.CommunicationOutcomeUnknownError,
    "output_limit": exceptions.OutputLimitError,
    "guest": exceptions.GuestAgentError,
    "file": exceptions.VmPermanentError,
    "file_not_found": exceptions.VmPermanentError,
    "session_closed": exceptions.SessionClosedError,
    "closed": exceptions.SandboxError,
    "teardown": exceptions.SandboxError,
    "host": exceptions.SandboxError,
}


def from_native(
    *,
    kind: str,
    message: str,
    remedy: str | None,
    vm_id: str | None,
    operation: str,
    causes: list[tuple[int | None, str]],
) -> BaseException:
    """The exception for an error of the Rust half.

    Its text is what was being done, why it failed and what to do about it; its `__cause__` is the chain of reasons.
    """
    reasons = [reason for _, reason in causes]
    text = ": ".join([message, *reasons])
    if remedy is not None:
        text = f"{text} ({remedy})"
    context: dict[str, Any] = {"kind": kind, "operation": operation}
    if vm_id is not None:
        context["vm_id"] = vm_id
    if remedy is not None:
        context["remedy"] = remedy
    if reasons:
        context["reason"] = reasons[0]
    error = _make(_CLASSES.get(kind, exceptions.SandboxError), text, context)
    error.__cause__ = _cause(causes)
    return error


def _make(kind: type[BaseException], text: str, context: dict[str, Any]) -> BaseException:
    if kind is exceptions.GuestAgentError:
        return exceptions.GuestAgentError(text, response=context)
    if issubclass(kind, exceptions.SandboxError):
        return kind(text, context)
    return kind(text)


def _cause(causes: list[tuple[int | None, str]]) -> BaseException | None:
    """The reasons as exceptions, each the cause of the one before it."""
    below: BaseException | None = None
    for errno, reason in reversed(causes):
        cause: BaseException
        if errno is None:
            cause = exceptions.SandboxError(reason)
        else:
            cause = OSError(errno, os.strerror(errno))
        cause.__cause__ = below
        below = cause
    return below
