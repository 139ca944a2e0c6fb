"""The log: silent unless somebody listens, on standard error for whoever asks."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from exec_sandbox import configure_logging

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGGER = logging.getLogger("exec_sandbox")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    handlers, level = list(LOGGER.handlers), LOGGER.level
    yield
    LOGGER.handlers[:] = handlers
    LOGGER.setLevel(level)


def _log_in_a_process(asked: str | None) -> str:
    """What a program that logs at every level writes to standard error."""
    program = """
import exec_sandbox, logging
log = logging.getLogger("exec_sandbox.vm")
for level in (5, logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
    log.log(level, "at %d", level)
"""
    environment = {} if asked is None else {"EXEC_SANDBOX_LOG_LEVEL": asked}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    return done.stderr


@pytest.mark.parametrize("asked", [None, ""])
def test_nothing_is_written_unless_asked_for(asked: str | None) -> None:
    assert _log_in_a_process(asked) == ""


@pytest.mark.parametrize(
    ("asked", "lines"), [("trace", 5), ("debug", 4), ("INFO", 3), (" warn ", 2), ("Warning", 2), ("error", 1)]
)
def test_the_environment_asks_for_a_level(asked: str, lines: int) -> None:
    assert len(_log_in_a_process(asked).splitlines()) == lines


def test_a_level_that_there_is_not_is_said_and_warnings_are_written() -> None:
    first, *others = _log_in_a_process("loud").splitlines()
    assert "EXEC_SANDBOX_LOG_LEVEL" in first
    assert "'loud'" in first
    assert len(others) == 2


def test_asking_twice_changes_the_level_and_writes_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("error")
    configure_logging(logging.INFO)
    LOGGER.info("once")
    LOGGER.debug("never")
    written = capsys.readouterr().err
    assert written.count("once") == 1
    assert "never" not in written
    assert "INFO exec_sandbox: once" in written


def test_quiet_leaves_errors_alone(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", quiet=True)
    LOGGER.warning("no")
    LOGGER.error("yes")
    written = capsys.readouterr().err
    assert "yes" in written
    assert "no" not in written


def test_without_a_level_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXEC_SANDBOX_LOG_LEVEL", "debug")
    configure_logging()
    assert LOGGER.level == logging.DEBUG
    monkeypatch.delenv("EXEC_SANDBOX_LOG_LEVEL")
    configure_logging()
    assert LOGGER.level == logging.WARNING


def test_a_level_that_there_is_not_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="loud"):
        configure_logging("loud")
