"""The network: what is refused has a name, exposed ports are reached, and the gateway is a process like any other."""

from __future__ import annotations

import asyncio
from typing import cast

import psutil
import pytest

from exec_sandbox import ExposedPort, PortMapping, Scheduler, SchedulerConfig
from exec_sandbox.settings import Settings
from exec_sandbox.vm_manager import VmManager

_SERVER = """
import asyncio

async def serve(reader, writer):
    writer.write(b"echo " + await reader.readline())
    await writer.drain()
    writer.close()

server = await asyncio.start_server(serve, "0.0.0.0", 8000)
"""


@pytest.mark.vm
async def test_without_a_network_there_is_none_and_with_one_the_hosts_world_is_refused_by_name(
    scheduler: Scheduler,
) -> None:
    code = "for h in 10.0.0.1 169.254.169.254 127.0.0.1; do curl -sS -m 5 http://$h:9/ || true; done; ls /sys/class/net"
    apart, on_net = await asyncio.gather(
        scheduler.run(code, language="raw"), scheduler.run(code, language="raw", allow_network=True)
    )
    assert apart.stdout.split() == ["lo"]
    assert apart.refusals == {}
    assert apart.timing.gvproxy_start_ms is None
    assert on_net.stdout.split() == ["eth0", "lo"]
    # 127.0.0.1 is the guest itself.
    assert on_net.refusals == {"private_address": 1, "metadata_address": 1}
    assert on_net.timing.gvproxy_start_ms is not None


@pytest.mark.vm
async def test_an_exposed_port_is_listed_before_anything_runs_and_reached_from_the_host(scheduler: Scheduler) -> None:
    async with await scheduler.session(language="python", expose_ports=[8000, PortMapping(internal=8001)]) as session:
        first, second = session.exposed_ports
        assert isinstance(first, ExposedPort)
        assert (first.internal, second.internal, first.host) == (8000, 8001, "127.0.0.1")
        assert first.external != second.external
        await session.exec(_SERVER)
        serving = asyncio.ensure_future(session.exec("await asyncio.sleep(3)"))
        await asyncio.sleep(0.3)
        answers = await asyncio.gather(*[_asks(first.external, n) for n in range(20)])
        assert answers == [f"echo {n}\n".encode() for n in range(20)]
        result = await serving
        assert result.exposed_ports == [first, second]


class _Resolver(asyncio.DatagramProtocol):
    """Answers each question for an address with that of this machine."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        # The question again, and its name's one address, for a minute.
        header = data[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
        self.transport.sendto(header + data[12:] + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1", addr)


@pytest.mark.vm
async def test_resolvers_registries_and_exceptions_of_the_configuration_lead_to_the_network() -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(_Resolver, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    code = """
import socket
for name in ("files.packages.example", "other.example"):
    try:
        print(socket.gethostbyname(name))
    except socket.gaierror:
        print("none")
"""
    leads = {"resolvers": [f"127.0.0.1:{port}"], "registries": {"python": ["packages.example"]}}
    for exceptions, printed, refused in [
        (["127.0.0.0/8"], "127.0.0.1\nnone\n", {"name_not_allowed"}),
        ([], "none\nnone\n", {"name_not_allowed", "loopback_address"}),
    ]:
        async with Scheduler(SchedulerConfig(network_exceptions=exceptions, **leads)) as scheduler:
            result = await scheduler.run(code, language="python", allow_network=True)
            assert (result.stdout, set(result.refusals)) == (printed, refused)
    transport.close()


async def _asks(port: int, number: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{number}\n".encode())
    await writer.drain()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.vm
async def test_a_gateway_is_a_process_that_ends_with_its_vm() -> None:
    async with VmManager(Settings()) as manager:
        vm = await manager.create_vm("raw", "tenant", "network", allow_network=True)
        assert vm.gvproxy_proc is not None
        gateway = vm.gvproxy_proc.psutil_proc
        assert gateway is not None
        assert "gateway" in gateway.exe()
        assert gateway.pid != vm.process.pid
        assert vm.gvproxy_start_ms is not None
        await vm.channel.close()
        gateway.cpu_percent()
        await asyncio.sleep(3)
        assert gateway.cpu_percent() < 2
        assert await vm.destroy()
        assert not psutil.pid_exists(gateway.pid)
        # The loss of a gateway is the loss of the network, and of nothing else.
        vm = await manager.create_vm("raw", "tenant", "network", allow_network=True)
        assert vm.gvproxy_proc is not None
        await vm.gvproxy_proc.kill()
        assert await vm.gvproxy_proc.wait_with_timeout(5) == -9
        assert (await vm.execute("echo alive")).stdout == "alive\n"
