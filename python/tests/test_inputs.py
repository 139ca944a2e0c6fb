"""The table of input rules: what is refused, how, and that a session loses nothing by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from exec_sandbox import (
    CodeValidationError,
    EnvVarValidationError,
    InputValidationError,
    PackageNotAllowedError,
    Scheduler,
    SchedulerConfig,
    VmCapacityError,
    VmConfigError,
    VmPermanentError,
)
from exec_sandbox.settings import Settings
from exec_sandbox.vm_manager import VmManager

if TYPE_CHECKING:
    from pathlib import Path

_HUGE = 10**12

_OF_A_PROGRAM: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"timeout_seconds": 0}, ValueError, "timeout_seconds must be between 1 and 300"),
    ({"timeout_seconds": 301}, ValueError, "timeout_seconds must be between 1 and 300"),
    ({"timeout_seconds": -1}, ValueError, "timeout_seconds must be between 1 and 300"),
    ({"timeout_seconds": float("nan")}, ValueError, "timeout_seconds must be between 1 and 300"),
    ({"timeout_seconds": _HUGE**3}, ValueError, "timeout_seconds must be between 1 and 300"),
    ({"timeout_seconds": "5"}, TypeError, "timeout_seconds must be a number, not str"),
    ({"code": b"print(1)"}, TypeError, "code must be a string, not bytes"),
    ({"env_vars": ["A"]}, TypeError, "env_vars must be a mapping"),
    ({"env_vars": {"A": 1}}, TypeError, "env_vars must have strings"),
    ({"code": "x" * 1_048_577}, VmConfigError, "Code too large"),
    ({"code": ""}, CodeValidationError, "Code cannot be empty"),
    ({"code": " \n\t"}, CodeValidationError, "Code cannot be empty"),
    ({"code": "\ufeff"}, CodeValidationError, "Code cannot be empty"),
    ({"code": "print(1)\0"}, CodeValidationError, "null bytes"),
    ({"env_vars": {f"N{n}": "" for n in range(101)}}, EnvVarValidationError, "100"),
    ({"env_vars": {"": "1"}}, EnvVarValidationError, ""),
    ({"env_vars": {"N" * 257: "1"}}, EnvVarValidationError, "256"),
    ({"env_vars": {"N": "v" * 4097}}, EnvVarValidationError, "4096"),
    ({"env_vars": {"N": "a\x07"}}, EnvVarValidationError, "control"),
    ({"env_vars": {"N": "a\x7f"}}, EnvVarValidationError, "control"),
    *[
        ({"env_vars": {name: "1"}}, EnvVarValidationError, "blocked")
        for name in ("LD_PRELOAD", "ld_preload", "PATH", "PYTHONPATH", "NODE_OPTIONS", "BASH_ENV", "IFS")
    ],
]

_OF_A_VM: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"language": "ruby"}, ValueError, "ruby"),
    ({"memory_mb": 127}, VmConfigError, "below minimum"),
    ({"memory_mb": -5}, VmConfigError, "below minimum"),
    ({"memory_mb": _HUGE}, VmCapacityError, "ask for less memory"),
    ({"memory_mb": "lots"}, TypeError, "memory_mb must be a whole number, not str"),
    ({"memory_mb": True}, TypeError, "memory_mb must be a whole number, not bool"),
    ({"packages": [1]}, TypeError, "packages must be a list of strings"),
    ({"expose_ports": ["80"]}, TypeError, "expose_ports must be port numbers"),
    ({"expose_ports": [70_000]}, ValueError, "between 1 and 65535"),
    ({"packages": ["requests"]}, PackageNotAllowedError, "requests"),
    ({"packages": ["requests>=2"]}, PackageNotAllowedError, "requests"),
    ({"packages": ["reqeusts==2.32.3"]}, PackageNotAllowedError, "did you mean requests"),
    ({"packages": [f"p{n}==1" for n in range(51)]}, PackageNotAllowedError, "50"),
    ({"packages": ["coreutils==9"], "language": "raw"}, PackageNotAllowedError, "raw"),
    ({"packages": ["requests==2.32.3", "requests==2.32.2"]}, PackageNotAllowedError, "two of the same"),
    ({"packages": ["lodash@4.17"], "language": "javascript"}, PackageNotAllowedError, "not pinned"),
    ({"packages": ["git+https://a.example/x"]}, PackageNotAllowedError, "not pinned"),
    ({"packages": "requests==2"}, TypeError, "packages must be a list"),
    ({"expose_ports": list(range(2000, 2011))}, ValueError, "Too many exposed ports"),
    ({"expose_ports": [0]}, ValueError, "port"),
    ({"allow_network": True, "allowed_domains": ["localhost"]}, ValueError, "localhost"),
    ({"allow_network": True, "allowed_domains": ["under_score.example"]}, ValueError, "under_score"),
    ({"allow_network": True, "allowed_domains": [("a" * 63 + ".") * 4 + "example"]}, ValueError, "253"),
    ({"allowed_domains": ["example.com"]}, ValueError, "without allow_network"),
]


@pytest.mark.parametrize(("change", "kind", "says"), _OF_A_PROGRAM + _OF_A_VM)
async def test_a_run_refuses(scheduler: Scheduler, change: dict[str, Any], kind: type[Exception], says: str) -> None:
    request = {"code": "print(1)", "language": "python", **change}
    with pytest.raises(kind) as raised:
        await scheduler.run(**request)
    assert says.lower() in str(raised.value).lower()
    if issubclass(kind, InputValidationError):
        assert raised.value.context["operation"] == "run"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("change", "kind", "says"), _OF_A_VM)
async def test_a_session_is_refused(
    scheduler: Scheduler, change: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as raised:
        await scheduler.session(**{"language": "python", **change})
    assert says.lower() in str(raised.value).lower()


@pytest.mark.parametrize(("change", "kind", "says"), [row for row in _OF_A_VM if "packages" in row[0]])
async def test_a_vm_of_a_managers_is_refused_the_same_packages(
    change: dict[str, Any], kind: type[Exception], says: str
) -> None:
    async with VmManager(Settings()) as manager:
        with pytest.raises(kind) as raised:
            await manager.create_vm(**{"language": "python", "tenant_id": "t", "task_id": "t", **change})
    assert says.lower() in str(raised.value).lower()


async def test_a_name_that_few_use_is_refused_unless_that_is_turned_off() -> None:
    request: dict[str, Any] = {
        "code": "print(1)",
        "language": "python",
        "packages": ["reqeusts==2.32.3", "reqeusts==2.32.2"],
    }
    async with Scheduler() as scheduler:
        with pytest.raises(PackageNotAllowedError, match="enable_package_validation"):
            await scheduler.run(**request)
    # Then it is refused for what comes next.
    async with Scheduler(SchedulerConfig(enable_package_validation=False)) as scheduler:
        with pytest.raises(PackageNotAllowedError, match="two of the same"):
            await scheduler.run(**request)


async def test_an_index_that_no_guest_reaches_is_refused_at_the_start_without_its_password() -> None:
    config = SchedulerConfig(package_indexes={"python": "http://user:secret@mirror.example/"})
    with pytest.raises(VmConfigError, match="is not HTTPS") as raised:
        await Scheduler(config).__aenter__()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("seconds", [-1, 9, 3601])
async def test_an_idle_timeout_has_its_range(scheduler: Scheduler, seconds: int) -> None:
    with pytest.raises(ValueError, match="between 10 and 3600"):
        await scheduler.session(language="raw", idle_timeout_seconds=seconds)


@pytest.mark.vm
async def test_a_refused_request_costs_a_session_nothing(scheduler: Scheduler, tmp_path: Path) -> None:
    async with await scheduler.session(language="python") as session:
        await session.exec("kept = 42")
        for change, kind, _ in _OF_A_PROGRAM:
            with pytest.raises(kind):
                await session.exec(**{"code": "print(1)", **change})
        for path in ("/etc/passwd", "../x", "a/../../x", "a\0b", "a\nb", "n" * 256, "d/" * 2049, ""):
            with pytest.raises(VmPermanentError):
                await session.write_file(path, b"1")
        await session.exec("import os; os.symlink('/etc', 'out')")
        with pytest.raises(VmPermanentError):
            await session.read_file("out/hostname", destination=tmp_path / "hostname")
        with pytest.raises(VmPermanentError):
            await session.write_file("out/x", b"1")
        with (tmp_path / "huge").open("wb") as huge:
            huge.truncate(500 * 1024 * 1024 + 1)
        with pytest.raises(ValueError, match="exceeds"):
            await session.write_file("huge", tmp_path / "huge")
        with pytest.raises(TypeError, match="encode it"):
            await session.write_file("text", "text")  # type: ignore[arg-type]
        assert not session.closed
        assert (await session.exec("print(kept)")).stdout == "42\n"
        # What is on the edge of a rule is in.
        edge = await session.exec(
            "\ufeffimport os; print(len(os.environ['N' * 256]), repr(os.environ['T']))",
            env_vars={"N" * 256: "v" * 4096, "T": "a\tb"},
            timeout_seconds=300,
        )
        assert edge.stdout == "4096 'a\\tb'\n"
