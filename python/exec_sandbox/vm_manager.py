"""The manager of VMs: for whoever wants VMs themselves, and not only what runs in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exec_sandbox import _config, _native, _requests
from exec_sandbox.exceptions import SandboxError
from exec_sandbox.models import Language
from exec_sandbox.qemu_vm import QemuVM
from exec_sandbox.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self

    from exec_sandbox.models import ExposedPort, PortMapping


class VmManager:
    """Makes VMs. Used as `async with VmManager(Settings()) as manager:`; when the block is left, none of its VMs is alive."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Nothing is done before it is started."""
        self.settings = settings or Settings()
        self._native: _native.Scheduler | None = None
        self._vms: dict[str, QemuVM] = {}

    async def start(self) -> None:
        """Examines this machine; see `Scheduler`. The block of `async with` does it."""
        if self._native is not None:
            raise SandboxError("the manager of VMs is already started")
        self._native = await _native.Scheduler.start(_config.of_settings(self.settings))

    async def stop(self) -> None:
        """Ends every VM; returns when all are confirmed dead."""
        native, self._native = self._native, None
        if native is not None:
            await native.close()
        self._vms.clear()

    async def __aenter__(self) -> Self:
        """Starts it."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops it."""
        await self.stop()

    def get_active_vms(self) -> dict[str, QemuVM]:
        """The VMs that have not ended, by their names."""
        self._vms = {name: vm for name, vm in self._vms.items() if vm.process.is_alive}
        return dict(self._vms)

    async def create_vm(
        self,
        language: str | Language,
        tenant_id: str,
        task_id: str,
        memory_mb: int | None = None,
        allow_network: bool = False,
        allowed_domains: Sequence[str] | None = None,
        *,
        packages: Sequence[str] | None = None,
        expose_ports: Sequence[PortMapping | ExposedPort | int] | None = None,
    ) -> QemuVM:
        """Boots a VM, which lives until it is destroyed or the manager stops.

        Args:
            language: Of its executions.
            tenant_id: On whose behalf it runs, for listings and logs: 1 to 128 letters, digits, `_` and `-`.
            task_id: What it runs for; of the same form.
            memory_mb: Memory in MiB, at least 128. None: the settings'.
            allow_network: Whether it reaches the network.
            allowed_domains: Which domains; see `Scheduler.run`.
            packages: What is installed in it, each pinned; see `Scheduler.run`.
            expose_ports: Ports of the guest that the host reaches.

        Raises:
            ValueError, VmConfigError: a value is wrong; nothing was tried.
            PackageNotAllowedError: a package is none that may be installed.
            PackageInstallPermanentError: packages cannot be installed.
            TransientError: there is no room, or the VM did not come up; it may be tried again.

        """
        if self._native is None:
            raise SandboxError("the manager of VMs is not started: use `async with VmManager(settings) as manager:`")
        spec = _requests.vm(
            language=language,
            memory_mb=memory_mb,
            packages=packages,
            allow_network=allow_network,
            allowed_domains=allowed_domains,
            expose_ports=expose_ports,
        )
        spec["tenant_id"], spec["task_id"] = tenant_id, task_id
        vm = QemuVM(await self._native.create_vm(spec), Language(_requests.name(language)))
        # Those that have ended since, in whatever way, are let go, and with them the descriptors of their processes.
        self._vms = {**self.get_active_vms(), vm.vm_id: vm}
        return vm

    async def destroy_vm(self, vm: QemuVM) -> bool:
        """Ends a VM; see `QemuVM.destroy`."""
        destroyed = await vm.destroy()
        self._vms.pop(vm.vm_id, None)
        return destroyed
