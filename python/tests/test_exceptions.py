"""Exceptions: the tree, which is the retry contract, and that they survive being copied and pickled."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from exec_sandbox import _errors, exceptions
from exec_sandbox.exceptions import (
    AssetError,
    CommunicationError,
    GuestAgentError,
    InputValidationError,
    PermanentError,
    SandboxError,
    SocketAuthError,
    TransientError,
    VmOverlayError,
    VmPermanentError,
    VmQemuCrashError,
    VmTransientError,
)

# Every class and the one that it extends.
TREE: dict[str, type[BaseException]] = {
    "SandboxError": Exception,
    "TransientError": SandboxError,
    "VmTransientError": TransientError,
    "VmBootTimeoutError": VmTransientError,
    "VmOverlayError": VmTransientError,
    "VmQemuCrashError": VmTransientError,
    "VmGvproxyError": VmTransientError,
    "VmCapacityError": VmTransientError,
    "PackageInstallTransientError": TransientError,
    "BalloonTransientError": TransientError,
    "MigrationTransientError": TransientError,
    "PermanentError": SandboxError,
    "VmPermanentError": PermanentError,
    "VmConfigError": VmPermanentError,
    "VmDependencyError": VmPermanentError,
    "PackageInstallPermanentError": PermanentError,
    "SessionClosedError": PermanentError,
    "OutputLimitError": PermanentError,
    "InputValidationError": SandboxError,
    "CodeValidationError": InputValidationError,
    "EnvVarValidationError": InputValidationError,
    "CommunicationError": SandboxError,
    "SocketAuthError": CommunicationError,
    "CommunicationOutcomeUnknownError": SandboxError,
    "GuestAgentError": SandboxError,
    "PackageNotAllowedError": SandboxError,
    "SnapshotError": SandboxError,
    "SandboxDependencyError": SandboxError,
    "AssetError": SandboxError,
    "AssetDownloadError": AssetError,
    "AssetChecksumError": AssetError,
    "AssetNotFoundError": AssetError,
}

ALIASES = {
    "VmError": "VmPermanentError",
    "VmTimeoutError": "VmBootTimeoutError",
    "VmBootError": "VmTransientError",
    "QemuImgError": "VmOverlayError",
    "QemuStorageDaemonError": "VmOverlayError",
    "BalloonError": "BalloonTransientError",
}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "GuestAgentError": {"response": {"code": 3}},
    "SocketAuthError": {"expected_uid": 0, "actual_uid": 1000, "context": {"vm_id": "vm-1"}},
    "VmOverlayError": {"context": {"vm_id": "vm-1"}, "stderr": "no space", "error_class": "GenericError"},
    "VmQemuCrashError": {"context": {"vm_id": "vm-1"}, "diagnostics": {"exit_code": 1}},
}


class OfACaller(SocketAuthError):
    """A subclass whose constructor has other arguments."""

    def __init__(self, *, why: str) -> None:
        super().__init__("not you", 1, 2)
        self.why = why


def _make(name: str) -> SandboxError:
    error: SandboxError = getattr(exceptions, name)(
        "what happened", **ARGUMENTS.get(name, {"context": {"vm_id": "vm-1"}})
    )
    return error


@pytest.mark.parametrize(("name", "base"), TREE.items())
def test_each_extends_exactly_its_base(name: str, base: type[BaseException]) -> None:
    assert getattr(exceptions, name).__bases__ == (base,)


def test_there_are_no_others() -> None:
    there = {
        name for name, value in vars(exceptions).items() if isinstance(value, type) and issubclass(value, Exception)
    }
    assert there == TREE.keys() | ALIASES.keys()


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_an_alias_is_the_class_itself(alias: str, name: str) -> None:
    assert getattr(exceptions, alias) is getattr(exceptions, name)


def test_what_may_have_run_is_neither_transient_nor_permanent() -> None:
    assert not issubclass(exceptions.CommunicationOutcomeUnknownError, (TransientError, PermanentError))


@pytest.mark.parametrize("name", TREE)
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_text_context_and_attributes_survive_copying_and_pickling(name: str, again: Any) -> None:
    error = _make(name)
    error.__dict__["note"] = ["added later"]
    other = again(error)
    assert type(other) is type(error)
    assert (str(other), other.message, other.args) == ("what happened", "what happened", ("what happened",))
    assert vars(other) == vars(error)


def test_a_subclass_with_a_constructor_of_its_own_survives_pickling() -> None:
    other = pickle.loads(pickle.dumps(OfACaller(why="because")))
    assert (type(other), str(other), other.actual_uid, other.why) == (OfACaller, "not you", 2, "because")


def test_a_context_is_a_dictionary_of_its_own() -> None:
    assert SandboxError("m").context == {}
    given = {"vm_id": "vm-1"}
    error = SandboxError("m", given)
    given["vm_id"] = "vm-2"
    assert error.context == {"vm_id": "vm-1"}


def test_attributes_are_what_was_given() -> None:
    overlay = VmOverlayError("m", None, "no space", "GenericError")
    assert (overlay.stderr, overlay.error_class) == ("no space", "GenericError")
    assert (VmOverlayError("m").stderr, VmOverlayError("m").error_class) == ("", None)
    assert VmQemuCrashError("m", diagnostics=7).diagnostics == 7
    socket = SocketAuthError("m", 1, 2)
    assert (socket.expected_uid, socket.actual_uid) == (1, 2)
    agent = GuestAgentError("m", {"vm_id": "vm-1"})
    assert agent.response == {"vm_id": "vm-1"}
    assert agent.context == {"vm_id": "vm-1", "response": {"vm_id": "vm-1"}}


# Of an error of the Rust half: its class, and whether the same may be tried again.
KINDS: dict[str, tuple[type[BaseException], bool]] = {
    "package_not_allowed": (exceptions.PackageNotAllowedError, False),
    "package_install": (exceptions.PackageInstallPermanentError, False),
    "package_install_transient": (exceptions.PackageInstallTransientError, True),
    "capacity": (exceptions.VmCapacityError, True),
    "boot_timeout": (exceptions.VmBootTimeoutError, True),
    "vm": (exceptions.VmTransientError, True),
    "gateway": (exceptions.VmGvproxyError, True),
    "outcome_unknown": (exceptions.CommunicationOutcomeUnknownError, False),
}


@pytest.mark.parametrize(("kind", "expected"), KINDS.items())
def test_a_kind_has_its_class_its_reason_and_its_remedy(kind: str, expected: tuple[type[BaseException], bool]) -> None:
    error = _errors.from_native(
        kind=kind,
        message="installing packages",
        remedy="look at the name",
        vm_id=None,
        operation="run",
        causes=[(None, "x was not found")],
    )
    assert (type(error), isinstance(error, TransientError)) == expected
    assert str(error) == "installing packages: x was not found (look at the name)"
    assert isinstance(error, SandboxError)
    assert error.context == {
        "kind": kind,
        "operation": "run",
        "remedy": "look at the name",
        "reason": "x was not found",
    }
    assert str(error.__cause__) == "x was not found"
