"""Many at once, and calls that are cancelled at any moment."""

from __future__ import annotations

import asyncio
import random

import psutil
import pytest

from exec_sandbox import Scheduler

_RUNS = 200


@pytest.mark.vm
async def test_two_hundred_runs_at_once_all_succeed_by_waiting(scheduler: Scheduler) -> None:
    # What the first run brings with it, such as pydantic, is no growth.
    await scheduler.run("true", language="raw")
    ours = psutil.Process()
    before = ours.memory_info().rss
    results = await asyncio.gather(*[scheduler.run(f"echo {n}", language="raw", memory_mb=128) for n in range(_RUNS)])
    grown = ours.memory_info().rss - before
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(_RUNS)]
    assert grown < 50 * 1024 * 1024, f"{grown / 1024 / 1024:.1f} MiB"
    print(f"{_RUNS} runs, {grown / 1024 / 1024:.1f} MiB more resident memory")


@pytest.mark.vm
async def test_calls_that_are_cancelled_at_random_leave_nothing(scheduler: Scheduler) -> None:
    choose = random.Random(20)

    async def cancelled() -> None:
        call = scheduler.run("echo hi; sleep 30", language="raw", memory_mb=128, on_stdout=lambda _: None)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(call, choose.uniform(0, 3))

    await asyncio.gather(*[cancelled() for _ in range(16)])
    assert (await scheduler.run("echo still", language="raw")).stdout == "still\n"
    await scheduler.__aexit__(None, None, None)
    children = psutil.Process().children(recursive=True)
    assert [child for child in children if "qemu" in child.name()] == []
