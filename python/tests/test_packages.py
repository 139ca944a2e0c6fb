"""Packages, as far as nothing has to be installed: where their time is told, and who hears what is said meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from exec_sandbox import Session, _native, _results
from exec_sandbox._streams import BOOT_LOG, STDOUT, Listeners, heard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# Of a run: each phase a power of two of milliseconds, so that no sum is another's.
PHASES: dict[str, float] = {
    "admission": 0.001,
    "packages": 0.002,
    "prepare": 0.004,
    "gateway_start": 0.008,
    "spawn": 0.016,
    "guest_wait": 0.032,
    "execute": 0.064,
    "teardown": 0.128,
}


def outcome(**changes: Any) -> Any:
    figures = dict.fromkeys(("interpreter_start", "process", "qemu_cpu", "qemu_memory_peak_bytes"))
    return {
        "exit_code": 0,
        "ending": "code",
        "stdout": b"",
        "stderr": b"",
        "vm_id": "vm-1",
        "origin": "cold",
        **PHASES,
        "total": sum(PHASES.values()),
        **figures,
        "refusals": {},
        "exposed_ports": [],
        **changes,
    }


@pytest.mark.parametrize("origin", ["cold", "snapshot", "blank", "ready"])
def test_neither_packages_nor_the_gateway_are_lost_from_the_sum_or_count_twice(origin: str) -> None:
    timing = _results.of_run(outcome(origin=origin)).timing
    assert timing.admission_ms is not None
    assert timing.teardown_ms is not None
    phases = [timing.admission_ms, timing.setup_ms, timing.boot_ms, timing.execute_ms, timing.teardown_ms]
    assert sum(phases) == timing.total_ms == 255
    assert (timing.setup_ms, timing.packages_ms, timing.gvproxy_start_ms) == (14, 2, 8)


def test_a_run_without_packages_and_network_has_no_time_for_them() -> None:
    timing = _results.of_run(outcome(packages=None, gateway_start=None)).timing
    assert (timing.setup_ms, timing.packages_ms, timing.gvproxy_start_ms) == (4, None, None)


def test_what_is_said_while_packages_are_installed_is_heard_by_who_asked_for_the_boot_log_alone() -> None:
    pieces = [(BOOT_LOG, b"Resolved 3 packages\n"), (STDOUT, b"42\n")]
    said: list[str] = []
    written: list[str] = []
    Listeners(on_stdout=written.append).hear(pieces)
    assert written == ["42\n"]
    Listeners(on_boot_log=said.append).hear(pieces)
    assert said == ["Resolved 3 packages\n"]


@pytest.mark.parametrize("call", [heard, Session._start])
async def test_a_call_that_is_cancelled_does_not_listen_to_an_installation_that_goes_on(
    call: Callable[..., Any],
) -> None:
    def start(_stream: _native.OutputStream | None) -> Awaitable[Any]:
        # Neither does it end, nor does what is written to the stream.
        return asyncio.get_running_loop().create_future()

    calling = asyncio.ensure_future(call(start, Listeners(on_boot_log=print)))
    await asyncio.sleep(0)
    calling.cancel()
    await asyncio.wait({calling}, timeout=10)
    assert calling.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}
