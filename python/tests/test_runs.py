"""Runs: a fresh VM each, its result, and what a result says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psutil
import pytest

from exec_sandbox import (
    ExecutionResult,
    Language,
    SandboxError,
    Scheduler,
    SchedulerConfig,
    VmBootTimeoutError,
    VmConfigError,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.vm
async def test_a_run_says_what_the_program_wrote_and_how_it_ended(scheduler: Scheduler) -> None:
    result = await scheduler.run(
        "import os, sys; print(os.environ['NAME'], 'ä'); print('no', file=sys.stderr); sys.exit(7)",
        language="python",
        env_vars={"NAME": "world"},
    )
    assert isinstance(result, ExecutionResult)
    assert (result.stdout, result.stderr, result.exit_code) == ("world ä\n", "no\n", 7)
    assert result.exposed_ports == []
    assert not result.warm_pool_hit


@pytest.mark.vm
async def test_a_run_says_whether_its_vm_came_from_a_snapshot(tmp_path: Path) -> None:
    snapshots = tmp_path / "snapshots"
    async with Scheduler(SchedulerConfig(memory_snapshot_cache_dir=snapshots)) as scheduler:
        booted = await scheduler.run("echo first", language="raw")
        restored = await scheduler.run("echo second", language="raw")
    assert (booted.stdout, booted.l1_cache_hit, booted.timing.l1_restore_ms) == ("first\n", False, None)
    assert booted.timing.guest_wait_ms is not None
    assert (restored.stdout, restored.l1_cache_hit, restored.timing.guest_wait_ms) == ("second\n", True, None)
    assert restored.timing.l1_restore_ms is not None
    assert restored.timing.l1_restore_ms <= restored.timing.boot_ms


@pytest.mark.vm
async def test_a_pool_has_vms_that_are_up() -> None:
    async with Scheduler(SchedulerConfig(warm_pool_size=1)) as scheduler:
        await scheduler.wait_pool_ready()
        result = await scheduler.run("print('hello')", language="python")
        assert (result.stdout, result.warm_pool_hit, result.l1_cache_hit) == ("hello\n", True, False)
        timing = result.timing
        assert (timing.boot_ms, timing.guest_wait_ms, timing.l1_restore_ms) == (0, None, None)
        with pytest.raises(VmBootTimeoutError, match="waiting for the pool"):
            await scheduler.wait_pool_ready(timeout=0)


@pytest.mark.vm
async def test_what_is_measured_adds_up_and_what_is_not_is_absent(scheduler: Scheduler) -> None:
    result = await scheduler.run("sleep 0.3", language=Language.RAW)
    timing = result.timing
    parts = [timing.admission_ms, timing.setup_ms, timing.boot_ms, timing.execute_ms, timing.teardown_ms]
    assert all(part is not None and part >= 0 for part in parts)
    assert timing.boot_ms > 0
    assert timing.execute_ms >= 300
    # Each was rounded by itself.
    assert sum(part or 0 for part in parts) <= timing.total_ms + len(parts)
    assert timing.qemu_fork_ms is not None
    # One of both took place.
    waits = [timing.guest_wait_ms, timing.l1_restore_ms]
    assert waits.count(None) == 1
    assert result.l1_cache_hit == (timing.l1_restore_ms is not None)
    assert abs(timing.boot_ms - timing.qemu_fork_ms - sum(wait or 0 for wait in waits)) <= 2
    assert timing.boot_retries == 0
    for absent in ("connect_ms", "overlay_ms", "qemu_cmd_build_ms", "gvproxy_start_ms"):
        assert getattr(timing, absent) is None, absent
    assert result.process_ms is not None
    assert result.process_ms >= 300
    assert result.spawn_ms is not None
    assert result.execution_time_ms is not None
    assert abs(result.execution_time_ms - result.spawn_ms - result.process_ms) <= 2
    assert result.external_cpu_time_ms is not None
    assert result.external_cpu_time_ms > 0
    assert result.external_memory_peak_mb is not None
    assert result.external_memory_peak_mb > 50
    assert result.external_cpu_nr_throttled is None


@pytest.mark.vm
async def test_three_languages_at_once_and_nothing_of_them_is_left(scheduler: Scheduler) -> None:
    ours = psutil.Process()
    python, javascript, raw = await asyncio.gather(
        scheduler.run("print(6 * 7)", language="python"),
        scheduler.run("const x: number = 41; console.log(await Promise.resolve(x + 1))", language="javascript"),
        scheduler.run("echo $((40 + 2))", language="raw"),
    )
    assert python.stdout == javascript.stdout == raw.stdout == "42\n"
    # Before the scheduler is left.
    assert [child for child in ours.children(recursive=True) if "qemu" in child.name()] == []


@pytest.mark.vm
async def test_streams_are_heard_as_they_come_and_joined_are_the_result(scheduler: Scheduler) -> None:
    heard: list[tuple[str, str]] = []
    loop = asyncio.get_running_loop()
    threads: set[bool] = set()

    def on_stdout(text: str) -> None:
        threads.add(asyncio.get_running_loop() is loop)
        heard.append(("out", text))

    result = await scheduler.run(
        "import sys, time\nprint('a€')\ntime.sleep(0.5)\nsys.stderr.write('é')\nprint('b' * 200_000)",
        language="python",
        on_stdout=on_stdout,
        on_stderr=lambda text: heard.append(("err", text)),
    )
    assert threads == {True}
    assert heard[0] == ("out", "a€\n"), "the first line came before the pause was over"
    assert "".join(text for stream, text in heard if stream == "out") == result.stdout
    assert "".join(text for stream, text in heard if stream == "err") == result.stderr == "é"


@pytest.mark.vm
async def test_a_boot_log_is_the_guests_kernel(scheduler: Scheduler) -> None:
    lines: list[str] = []
    result = await scheduler.run("echo hi", language="raw", on_boot_log=lines.append)
    assert result.stdout == "hi\n"
    assert "Linux version" in "".join(lines)


@pytest.mark.vm
async def test_a_callback_that_raises_is_heard_no_more_and_the_program_goes_on(
    scheduler: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def raising(text: str) -> None:
        calls.append(text)
        raise KeyError("mine")

    result = await scheduler.run(
        "import time\nprint(1)\ntime.sleep(0.3)\nprint(2)", language="python", on_stdout=raising
    )
    assert result.stdout == "1\n2\n"
    assert calls == ["1\n"]
    assert "callback raised" in caplog.text


async def test_a_callback_that_would_have_to_be_awaited_is_refused(scheduler: Scheduler) -> None:
    async def on_stdout(text: str) -> None:
        raise AssertionError(text)

    with pytest.raises(TypeError, match="on_stdout must be a plain function"):
        await scheduler.run("print(1)", language="python", on_stdout=on_stdout)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="on_stderr must be callable"):
        await scheduler.run("print(1)", language="python", on_stderr=1)  # type: ignore[arg-type]


async def test_a_scheduler_is_used_between_its_start_and_its_end() -> None:
    scheduler = Scheduler(SchedulerConfig(default_timeout_seconds=5))
    assert scheduler.config.default_timeout_seconds == 5
    with pytest.raises(SandboxError, match="not started"):
        await scheduler.run("print(1)", language="python")
    async with scheduler:
        with pytest.raises(SandboxError, match="already started"):
            await scheduler.__aenter__()
        await scheduler.wait_pool_ready()
    with pytest.raises(SandboxError, match="has been left"):
        await scheduler.session(language="python")
    with pytest.raises(SandboxError, match="already started"):
        await scheduler.__aenter__()


async def test_a_bucket_that_can_be_none_is_told_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(VmConfigError, match="remote cache"):
        async with Scheduler(SchedulerConfig(s3_bucket="no bucket")):
            pass
    async with Scheduler(SchedulerConfig(s3_bucket=None, default_memory_mb=256)):
        pass
    assert caplog.text == ""


@pytest.mark.vm
async def test_the_configurations_defaults_are_the_requests() -> None:
    config = SchedulerConfig(default_timeout_seconds=1, default_memory_mb=300)
    async with Scheduler(config) as scheduler:
        slow, big = await asyncio.gather(
            scheduler.run("sleep 20", language="raw"),
            scheduler.run("awk '/MemTotal/ {print $2}' /proc/meminfo", language="raw"),
        )
    assert slow.exit_code == -1
    assert "timeout" in slow.stderr.lower()
    assert 230_000 < int(big.stdout) < 300 * 1024
