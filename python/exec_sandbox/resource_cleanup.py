"""The end of a VM's processes."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from exec_sandbox.exceptions import SandboxError

if TYPE_CHECKING:
    from exec_sandbox.platform_utils import ProcessWrapper

_logger = logging.getLogger(__name__)


async def cleanup_vm_processes(
    qemu_proc: ProcessWrapper | None,
    gvproxy_proc: ProcessWrapper | None,
    vm_id: str,
    qemu_term_timeout: float = 5.0,
    qemu_kill_timeout: float = 2.0,
    gvproxy_term_timeout: float = 3.0,
    gvproxy_kill_timeout: float = 2.0,
) -> bool:
    """Ends the VM that the processes belong to: QEMU is asked to end, and killed if it has not after `qemu_term_timeout` seconds.

    The network gateway has nothing to lose and ends with QEMU. Returns whether all of them are confirmed dead within the times;
    if not, their owner keeps trying.
    """
    of_vm = qemu_proc or gvproxy_proc
    if of_vm is None:
        return True
    limit = max(qemu_term_timeout + qemu_kill_timeout, gvproxy_term_timeout + gvproxy_kill_timeout)
    try:
        await asyncio.wait_for(of_vm.end(qemu_term_timeout), limit)
    except (SandboxError, asyncio.TimeoutError):
        _logger.warning("the processes of VM %s are not confirmed dead", vm_id, exc_info=True)
        return False
    return True
