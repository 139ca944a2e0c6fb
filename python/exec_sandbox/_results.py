"""Outcomes of the Rust half as models: seconds become whole milliseconds, bytes become text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exec_sandbox.models import ExecutionResult, ExposedPort, FileInfo, TimingBreakdown

if TYPE_CHECKING:
    from exec_sandbox import _native

_MIB = 1024 * 1024

# Where guests come from. Of a snapshot it takes a restore, of a pool nothing.
COLD = "cold"
RESTORED = ("snapshot", "blank")
READY = "ready"


def of_run(outcome: _native.Outcome) -> ExecutionResult:
    """The result of a program in a VM of its own."""
    setup = (outcome["packages"] or 0.0) + outcome["prepare"] + (outcome["gateway_start"] or 0.0)
    spawn, guest_wait, is_restored = outcome["spawn"], outcome["guest_wait"], outcome["origin"] in RESTORED
    timing = TimingBreakdown(
        setup_ms=_ms(setup),
        boot_ms=_ms(spawn + guest_wait),
        execute_ms=_ms(outcome["execute"]),
        total_ms=_ms(outcome["total"]),
        admission_ms=_ms(outcome["admission"]),
        packages_ms=_optional_ms(outcome["packages"]),
        gvproxy_start_ms=_optional_ms(outcome["gateway_start"]),
        qemu_fork_ms=_ms(spawn),
        l1_restore_ms=_ms(guest_wait) if is_restored else None,
        guest_wait_ms=_ms(guest_wait) if outcome["origin"] == COLD else None,
        teardown_ms=_ms(outcome["teardown"]),
    )
    return _result(outcome, timing, l1_cache_hit=is_restored, warm_pool_hit=outcome["origin"] == READY)


def of_exec(outcome: _native.Outcome) -> ExecutionResult:
    """The result of a program in a VM that was there."""
    timing = TimingBreakdown(
        setup_ms=0,
        boot_ms=0,
        execute_ms=_ms(outcome["execute"]),
        total_ms=_ms(outcome["total"]),
        admission_ms=_ms(outcome["admission"]),
    )
    return _result(outcome, timing)


def of_list(entries: list[tuple[bool, int, str]]) -> list[FileInfo]:
    """What is in a directory."""
    return [FileInfo(name=name, is_dir=is_dir, size=size) for is_dir, size, name in entries]


def of_ports(ports: list[tuple[int, int, str, str]]) -> list[ExposedPort]:
    """The ports of a guest that the host reaches."""
    return [
        ExposedPort.model_validate({"internal": internal, "external": external, "host": host, "protocol": protocol})
        for internal, external, host, protocol in ports
    ]


def _result(
    outcome: _native.Outcome, timing: TimingBreakdown, *, l1_cache_hit: bool = False, warm_pool_hit: bool = False
) -> ExecutionResult:
    start, process, peak = outcome["interpreter_start"], outcome["process"], outcome["qemu_memory_peak_bytes"]
    return ExecutionResult(
        stdout=outcome["stdout"].decode("utf-8", "replace"),
        stderr=outcome["stderr"].decode("utf-8", "replace"),
        exit_code=outcome["exit_code"],
        execution_time_ms=None if start is None or process is None else _ms(start + process),
        spawn_ms=_optional_ms(start),
        process_ms=_optional_ms(process),
        external_cpu_time_ms=_optional_ms(outcome["qemu_cpu"]),
        external_memory_peak_mb=None if peak is None else round(peak / _MIB),
        timing=timing,
        l1_cache_hit=l1_cache_hit,
        warm_pool_hit=warm_pool_hit,
        exposed_ports=of_ports(outcome["exposed_ports"]),
        refusals=outcome["refusals"],
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _optional_ms(seconds: float | None) -> int | None:
    return None if seconds is None else _ms(seconds)
