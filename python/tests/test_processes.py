"""VMs by hand: orphans that sleep, ends that are confirmed, processes as psutil sees them."""

from __future__ import annotations

import asyncio
import gc
import statistics
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, cast
from unittest.mock import AsyncMock

import psutil
import pytest

from exec_sandbox import SandboxError, VmTransientError
from exec_sandbox.platform_utils import ProcessWrapper
from exec_sandbox.qemu_vm import GuestChannel
from exec_sandbox.resource_cleanup import cleanup_vm_processes
from exec_sandbox.settings import Settings
from exec_sandbox.vm_manager import VmManager

if TYPE_CHECKING:
    from exec_sandbox.qemu_vm import QemuVM


class _Native:
    """A VM that is none. It is its process as well."""

    gateway = None
    exposed_ports = ()
    boot: ClassVar[dict[str, Any]] = {
        "origin": "cold",
        "prepare": 0,
        "spawn": 0,
        "guest_wait": 0,
        "gateway_start": None,
    }

    def __init__(self, vm_id: str) -> None:
        self.vm_id = vm_id
        self.process = self
        self.pid = 1
        self.lives = True

    def is_alive(self) -> bool:
        return self.lives

    async def close_channel(self) -> None:
        raise VmTransientError("using a VM that has ended")

    def ended(self) -> None:
        pass


async def test_a_manager_lets_go_of_vms_that_have_ended_and_of_no_others() -> None:
    made = [_Native(f"vm-{number}") for number in range(3)]
    manager = VmManager(Settings())
    manager._native = cast("Any", SimpleNamespace(create_vm=AsyncMock(side_effect=made)))
    handles = [weakref.ref(await manager.create_vm("raw", "tenant", "task")) for _ in made[:2]]
    made[0].lives = False
    await manager.create_vm("raw", "tenant", "task")
    gc.collect()
    assert [handle() is None for handle in handles] == [True, False]
    assert set(manager.get_active_vms()) == {"vm-1", "vm-2"}


async def _cpu_percent(process: psutil.Process, samples: int) -> list[float]:
    process.cpu_percent()
    percents = []
    for _ in range(samples):
        await asyncio.sleep(1)
        percents.append(process.cpu_percent())
    return percents


def _highest_mean(percents: list[list[float]]) -> float:
    # A second's is counted in ticks of 10 ms, of which a median would say one or two.
    return max(statistics.fmean(of_one) for of_one in percents)


async def test_the_channel_of_a_vm_that_has_ended_is_closed() -> None:
    await GuestChannel(cast("Any", _Native("vm-1"))).close()


@pytest.mark.parametrize("kind", [asyncio.TimeoutError, LookupError])
async def test_a_wait_that_is_too_long_is_a_timeout_error_whatever_that_of_asyncio_is(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    late = SimpleNamespace(TimeoutError=kind, wait_for=AsyncMock(side_effect=kind))
    monkeypatch.setattr("exec_sandbox.platform_utils.asyncio", late)
    native: Any = _Native("vm-1")
    with pytest.raises(TimeoutError, match="within 1 s"):
        await ProcessWrapper(native, native).wait_with_timeout(1)


@pytest.mark.vm
async def test_an_orphan_sleeps_and_is_destroyed_like_any_other() -> None:
    async with VmManager(Settings()) as manager:
        vms = await asyncio.gather(*[manager.create_vm(language, "tenant", "orphan") for language in ("python", "raw")])
        assert set(manager.get_active_vms()) == {vm.vm_id for vm in vms}
        processes = []
        for vm in vms:
            assert vm.gvproxy_proc is None
            process = vm.process.psutil_proc
            assert process is not None
            assert "qemu" in process.name()
            assert process.pid == vm.process.pid
            assert await vm.process.is_running()
            assert vm.process.returncode is None
            processes.append(process)
            code = "kept = 42" if vm.language.value == "python" else "kept=42"
            assert (await vm.execute(code)).exit_code == 0
            await vm.channel.close()
            await vm.channel.close()
        # A guest settles for a minute. Whatever else the machine does only adds to it, by as much as twice, so the best round counts.
        rounds: list[list[list[float]]] = []
        while len(rounds) < 6 and not (rounds and _highest_mean(rounds[-1]) < 2):
            rounds.append(await asyncio.gather(*[_cpu_percent(process, 20) for process in processes]))
        assert _highest_mean(rounds[-1]) < 2, rounds
        assert max(map(max, rounds[-1])) < 10, rounds
        await _ends_are_confirmed(vms, processes)
        assert manager.get_active_vms() == {}


async def _ends_are_confirmed(vms: list[QemuVM], processes: list[psutil.Process]) -> None:
    # An orphan is connected to again by whoever asks something of it.
    assert (await vms[0].execute("print(kept)")).stdout == "42\n"
    assert await asyncio.wait_for(vms[0].destroy(), 5)
    assert await vms[0].destroy(), "an end may be asked for again"
    assert await cleanup_vm_processes(vms[1].process, vms[1].gvproxy_proc, vms[1].vm_id)
    for vm, process in zip(vms, processes, strict=True):
        assert not psutil.pid_exists(process.pid)
        assert not await vm.process.is_running()
        assert vm.process.returncode is not None
        with pytest.raises(VmTransientError):
            await vm.execute("print(1)")
        await vm.channel.close()


@pytest.mark.vm
async def test_a_qemu_that_is_killed_or_stopped_from_outside_is_cleaned_up() -> None:
    async with VmManager(Settings()) as manager:
        killed, stopped, left = await asyncio.gather(
            *[manager.create_vm("raw", "tenant", "faults", memory_mb=128) for _ in range(3)]
        )
        process = killed.process.psutil_proc
        assert process is not None
        process.kill()
        assert await killed.process.wait_with_timeout(5) == -9
        assert await killed.destroy()
        process = stopped.process.psutil_proc
        assert process is not None
        process.suspend()
        assert await asyncio.wait_for(stopped.destroy(), 10)
        assert left.process.is_alive
        pid = left.process.pid
    assert not psutil.pid_exists(pid), "leaving the manager ends what is left"
    with pytest.raises(SandboxError, match="not started"):
        await manager.create_vm("raw", "tenant", "late")
