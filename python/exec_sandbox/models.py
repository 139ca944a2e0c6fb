"""What goes in and comes out, as pydantic models. Times are in whole milliseconds; what was not measured is None."""

from enum import Enum
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from exec_sandbox.constants import PORT_FORWARD_BIND_HOST, PORT_FORWARD_MIN_HOST_PORT

_MOST_PORT = 65535

Protocol = Literal["tcp", "udp"]
"""How a port is reached."""


class Language(str, Enum):
    """What code is written in."""

    PYTHON = "python"
    """CPython, with top-level await."""
    JAVASCRIPT = "javascript"
    """Bun; TypeScript too."""
    RAW = "raw"
    """A shell: bash."""


class FileInfo(BaseModel):
    """What is in a directory of a guest."""

    name: str = Field(description="Its name in the directory.")
    is_dir: bool = Field(description="Whether it is a directory.")
    size: int = Field(description="Its length in bytes; 0 for a directory.")


class PortMapping(BaseModel):
    """A port of a guest that the host is to reach."""

    internal: Annotated[int, Field(ge=1, le=_MOST_PORT)] = Field(description="The port in the guest.")
    external: Annotated[int, Field(ge=PORT_FORWARD_MIN_HOST_PORT, le=_MOST_PORT)] | None = Field(
        default=None, description="The port of the host; None: one that is free."
    )
    protocol: Protocol = "tcp"


class ExposedPort(BaseModel):
    """A port of a guest that the host reaches."""

    internal: int = Field(description="The port in the guest.")
    external: int = Field(description="The port of the host.")
    host: str = Field(default=PORT_FORWARD_BIND_HOST, description="The host's address.")
    protocol: Protocol = "tcp"

    @property
    def url(self) -> str:
        """Where a web server at the port is found."""
        return f"http://{self.host}:{self.external}"


class TimingBreakdown(BaseModel):
    """Where the time of one call went. The phases setup, boot and execute follow each other and do not overlap."""

    setup_ms: int = Field(description="What was prepared before QEMU; 0 in a VM that was there.")
    boot_ms: int = Field(description="From QEMU's start to the agent's first answer; 0 in a VM that was there.")
    execute_ms: int = Field(description="From the code's sending to its end.")
    total_ms: int = Field(description="All of the call.")
    admission_ms: int | None = Field(default=None, description="Waiting for memory and a processor.")
    connect_ms: int | None = Field(default=None, description="Connecting to the agent.")
    l1_restore_ms: int | None = Field(default=None, description="Of boot, if a snapshot was restored: that.")
    teardown_ms: int | None = Field(default=None, description="Until the VM was confirmed dead.")
    packages_ms: int | None = Field(default=None, description="Of setup: finding packages, or installing them.")
    overlay_ms: int | None = Field(default=None, description="Of setup: the disk.")
    qemu_cmd_build_ms: int | None = Field(default=None, description="Of setup: QEMU's arguments.")
    gvproxy_start_ms: int | None = Field(default=None, description="Of setup: the network gateway.")
    qemu_fork_ms: int | None = Field(default=None, description="Of boot: starting QEMU's process.")
    guest_wait_ms: int | None = Field(default=None, description="Of boot, if none was restored: waiting for the agent.")
    boot_retries: int = Field(default=0, description="Boots that failed before the one that did not.")


class ExecutionResult(BaseModel):
    """What became of a program, whether it succeeded or failed."""

    stdout: str = Field(description="What it wrote; bytes that are no UTF-8 are replaced.")
    stderr: str = Field(description="What it wrote to standard error.")
    exit_code: int = Field(description="Its exit code; 128 + n if signal n ended it, -1 if its time was up.")
    execution_time_ms: int | None = Field(default=None, description="Interpreter and program, measured in the guest.")
    spawn_ms: int | None = Field(default=None, description="Of that: until there was an interpreter.")
    process_ms: int | None = Field(default=None, description="Of that: the program.")
    external_cpu_time_ms: int | None = Field(default=None, description="Processor time of QEMU, measured on the host.")
    external_memory_peak_mb: int | None = Field(default=None, description="Most memory of QEMU in MiB, on the host.")
    external_cpu_nr_throttled: int | None = Field(default=None, description="How often its control group was halted.")
    timing: TimingBreakdown
    warm_pool_hit: bool = Field(default=False, description="Whether the VM had been booted before it was asked for.")
    l1_cache_hit: bool = Field(default=False, description="Whether the VM came from a snapshot of memory.")
    exposed_ports: list[ExposedPort] = Field(default_factory=list, description="Ports that the host reached.")
    refusals: dict[str, int] = Field(
        default_factory=dict, description="What the network refused, by name, and how often; see docs/network.md."
    )
