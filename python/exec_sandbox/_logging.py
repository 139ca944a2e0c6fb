"""The package's logger: silent unless somebody listens."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]
else:
    # Python 3.10 has no parameters for it.
    _Handler = logging.StreamHandler

LOGGER_NAME = "exec_sandbox"

# What the Rust half calls TRACE, and how the bridge to this logger numbers it.
TRACE = 5

_VARIABLE = "EXEC_SANDBOX_LOG_LEVEL"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LEVELS = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


class _StderrHandler(_Handler):
    """Writes to what `sys.stderr` is at the time, which whoever captures output replaces."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(logging.Formatter(_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure_logging(level: int | str | None = None, *, quiet: bool = False) -> None:
    """Writes the package's log to standard error. Called again, it changes the level.

    Args:
        level: A level of `logging`, or its name. None: `$EXEC_SANDBOX_LOG_LEVEL`, else warnings.
        quiet: Errors alone, whatever `level` is.

    Raises:
        ValueError: there is no such level.

    """
    if quiet:
        level = logging.ERROR
    elif level is None:
        level = os.environ.get(_VARIABLE) or logging.WARNING
    number = _number(level)
    logger = logging.getLogger(LOGGER_NAME)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
    logger.setLevel(number)


def prepare() -> None:
    """What happens when the package is imported: silence, unless the environment asks for a log."""
    logger = logging.getLogger(LOGGER_NAME)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    asked = os.environ.get(_VARIABLE)
    if not asked:
        return
    try:
        configure_logging(asked)
    except ValueError:
        # An import does not fail because of a log.
        configure_logging(logging.WARNING)
        logger.warning("%s is none of %s: %r", _VARIABLE, ", ".join(_LEVELS), asked)


def _number(level: int | str) -> int:
    if isinstance(level, int):
        return level
    name = level.strip().lower()
    if name not in _LEVELS:
        raise ValueError(f"a level of the log is one of {', '.join(_LEVELS)}, not {level!r}")
    return _LEVELS[name]
