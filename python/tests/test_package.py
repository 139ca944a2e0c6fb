"""The package from outside: its names, what importing it loads, its version, its types and its commands."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import exec_sandbox
from exec_sandbox import __main__ as command_line
from exec_sandbox import _programs

ROOT = Path(__file__).parents[2]

NAMES = """
AssetChecksumError AssetDownloadError AssetError AssetNotFoundError BalloonTransientError CodeValidationError CommunicationError
CommunicationOutcomeUnknownError EnvVarValidationError ExecutionResult ExposedPort FileInfo GuestAgentError InputValidationError
Language MigrationTransientError OutputLimitError PackageInstallPermanentError PackageInstallTransientError PackageNotAllowedError
PermanentError PortMapping SandboxDependencyError SandboxError Scheduler SchedulerConfig Session SessionClosedError SnapshotError
SocketAuthError TimingBreakdown TransientError VmBootError VmBootTimeoutError VmCapacityError VmConfigError VmDependencyError
VmError VmGvproxyError VmOverlayError VmPermanentError VmQemuCrashError VmTimeoutError VmTransientError configure_logging
__version__
""".split()


def _python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def _said(*arguments: str, **variables: str) -> str:
    done = _python(*arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_public_names_are_these() -> None:
    assert sorted(exec_sandbox.__all__) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_can_be_had_and_is_listed(name: str) -> None:
    assert getattr(exec_sandbox, name) is not None
    assert name in dir(exec_sandbox)


def test_all_can_be_imported_at_once() -> None:
    assert _said("-c", "from exec_sandbox import *; print(Scheduler.__name__, VmError.__name__)") == (
        "Scheduler VmPermanentError\n"
    )


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Schedular"):
        _ = exec_sandbox.Schedular  # type: ignore[attr-defined]  # what is tested
    with pytest.raises(ImportError, match="Schedular"):
        from exec_sandbox import Schedular  # type: ignore[attr-defined]  # noqa: F401  # what is tested


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import exec_sandbox", ["asyncio", "pydantic", "psutil", "exec_sandbox._native", "exec_sandbox.exceptions"]),
        ("from exec_sandbox import Scheduler", ["pydantic", "psutil"]),
        ("from exec_sandbox import SandboxError", ["asyncio", "pydantic", "exec_sandbox._native"]),
    ],
)
def test_an_import_loads_nothing_that_it_does_not_need(statement: str, absent: list[str]) -> None:
    assert _said("-c", f"{statement}; import sys; print([it for it in {absent} if it in sys.modules])") == "[]\n"


def test_the_version_is_that_of_the_workspace() -> None:
    lines = (ROOT / "Cargo.toml").read_text(encoding="utf-8").split("[workspace.package]")[1].splitlines()
    version = next(line for line in lines if line.startswith("version = ")).split('"')[1]
    assert exec_sandbox.__version__ == version
    assert importlib.metadata.version("exec-sandbox") == version


def test_the_wheel_has_the_module_the_types_and_both_commands() -> None:
    files = importlib.metadata.files("exec-sandbox")
    assert files is not None
    names = {file.name for file in files}
    assert {"_native.abi3.so", "_native.pyi", "py.typed", "sbx", "exec-sandbox"} <= names
    assert not any("tests" in file.parts or "build_backend" in file.parts for file in files)
    for name in ("sbx", "exec-sandbox"):
        assert os.access(Path(sysconfig.get_path("scripts"), name), os.X_OK)


def test_both_commands_are_sbx() -> None:
    scripts = sysconfig.get_path("scripts")
    sbx, exec_sandbox_, module = (
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        for command in ([f"{scripts}/sbx"], [f"{scripts}/exec-sandbox"], [sys.executable, "-m", "exec_sandbox"])
    )
    assert sbx == exec_sandbox_ == module
    assert exec_sandbox.__version__ in sbx


def test_the_exit_code_is_that_of_sbx() -> None:
    assert _python("-m", "exec_sandbox", "run", "--no-such-option").returncode == 2


def test_without_sbx_the_command_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_programs, "directories", lambda: [str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 127
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "pip install --force-reinstall exec-sandbox" in said


def test_types_are_seen_by_programs_that_use_the_package(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        """
from typing_extensions import assert_type

from exec_sandbox import ExecutionResult, FileInfo, Scheduler, SchedulerConfig, Session, VmBootError, __version__


async def main() -> None:
    async with Scheduler(SchedulerConfig(warm_pool_size=1)) as scheduler:
        assert_type(scheduler, Scheduler)
        result = await scheduler.run("1", language="python")
        assert_type(result, ExecutionResult)
        assert_type(result.timing.connect_ms, int | None)
        async with await scheduler.session(language="raw") as session:
            assert_type(session, Session)
            assert_type(await session.list_files(), list[FileInfo])
        await scheduler.run(b"1", language="python")  # wrong
    assert_type(VmBootError("m").context["vm_id"], object)  # wrong
    assert_type(__version__, str)
""",
        encoding="utf-8",
    )
    checked = _python("-m", "mypy", "--strict", "--no-incremental", "--config-file=", str(program))
    wrong = [n for n, line in enumerate(program.read_text("utf-8").splitlines(), 1) if line.endswith("# wrong")]
    errors = [int(line.split(":")[1]) for line in checked.stdout.splitlines() if ": error:" in line]
    assert errors == wrong, checked.stdout
