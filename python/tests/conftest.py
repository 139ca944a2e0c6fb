"""What all tests share: a scheduler, the watch for leaks, and the order, in which those that boot VMs come last."""

from __future__ import annotations

import asyncio
import contextlib
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from exec_sandbox import SandboxError, Scheduler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytest_plugins = ["leaks", "pytester"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("vm") is not None)


@pytest.fixture(scope="session")
def what_lasts() -> None:
    """The runtime of the Rust half, which a process has once and keeps, and the models, which are imported beside the first boot."""
    import_module("exec_sandbox._results")

    async def start() -> None:
        # Without an image it fails, and the runtime is there all the same.
        with contextlib.suppress(SandboxError):
            async with Scheduler():
                pass

    asyncio.run(start())


@pytest.fixture(scope="session")
def what_lasts_of_vms(what_lasts: None) -> None:  # noqa: ARG001  # it comes before
    """And what starts processes."""

    async def run() -> None:
        async with Scheduler() as scheduler:
            await scheduler.run("true", language="raw", on_stdout=print)

    asyncio.run(run())


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    async with Scheduler() as scheduler:
        yield scheduler
