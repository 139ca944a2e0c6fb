"""What a test may not leave behind: tasks, descriptors, processes, and exceptions that nobody retrieved. A plugin of pytest.

What a process opens once and keeps is no leak: fixtures that open it come before the first test that does.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class _Complaints(logging.Handler):
    """What asyncio says of exceptions that nobody retrieved and of tasks that were destroyed while pending."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    """Of the test's loop, before that cancels them."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks were left: {left}"


@pytest.fixture(scope="session")
def what_lasts() -> None:
    """To be replaced by what opens once what a process keeps open."""


@pytest.fixture(scope="session")
def what_lasts_of_vms() -> None:
    """The same for tests that boot VMs."""


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test that left something, once all its other fixtures have ended."""
    request.getfixturevalue("what_lasts_of_vms" if request.node.get_closest_marker("vm") else "what_lasts")
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("no_task_is_left")
    complaints, asyncio_logger = _Complaints(), logging.getLogger("asyncio")
    asyncio_logger.addHandler(complaints)
    before = _descriptors()
    yield
    gc.collect()
    asyncio_logger.removeHandler(complaints)
    assert not complaints.said
    opened = {number: what for number, what in _descriptors().items() if before.get(number) != what}
    assert not opened, f"descriptors were left open: {opened}"
    children = psutil.Process().children(recursive=True)
    assert not children, f"processes were left: {children}"


def _descriptors() -> dict[str, str]:
    """Numbers and what they are of, without that of the directory that is read for it."""
    found = {}
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            found[entry.name] = str(entry.readlink())
        except FileNotFoundError:
            continue
    return found
