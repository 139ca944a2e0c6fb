"""The Rust half of the package. Private: it changes with the package, and only with it."""

from collections.abc import Awaitable
from os import PathLike
from typing import Protocol, TypedDict, final

from typing_extensions import NotRequired

__version__: str

class Config(TypedDict):
    """A scheduler's configuration. Times are in seconds; None is the library's default."""

    warm_pool_size: int | None
    package_validation: bool | None
    default_memory_mib: int | None
    default_timeout: float | None
    session_idle_timeout: float | None
    images_dir: PathLike[str] | None
    snapshot_dir: PathLike[str] | None
    assets_url: str | None
    auto_download_assets: bool | None
    qemu: PathLike[str] | None
    gateway: PathLike[str] | None
    force_emulation: bool | None
    host_memory_reserve_ratio: float | None
    memory_overcommit_ratio: float | None
    host_cpu_reserve_cores: float | None
    cpu_overcommit_ratio: float | None
    network_exceptions: list[str]
    resolvers: list[str] | None
    registries: list[tuple[str, list[str]]]
    package_indexes: list[tuple[str, str]]
    package_ca: PathLike[str] | None
    layer_dir: PathLike[str] | None
    s3: tuple[str, str, str, int] | None

class Network(TypedDict):
    """What of the network a VM reaches, and which of its ports are reached."""

    allow: bool
    domains: list[str] | None
    expose: list[tuple[int, int | None, str]]

class VmSpec(TypedDict):
    """A VM."""

    language: str
    network: Network
    memory_mib: NotRequired[int | None]
    packages: NotRequired[list[str]]
    tenant_id: NotRequired[str | None]
    task_id: NotRequired[str | None]

class Program(TypedDict):
    """A program."""

    code: str
    timeout: NotRequired[float | None]
    env: NotRequired[list[tuple[str, str]]]

class Outcome(TypedDict):
    """A finished execution. Times are in seconds; what was not measured is None."""

    exit_code: int
    ending: str
    stdout: bytes
    stderr: bytes
    vm_id: str
    origin: str
    admission: float
    packages: float | None
    prepare: float
    spawn: float
    guest_wait: float
    execute: float
    teardown: float
    total: float
    interpreter_start: float | None
    process: float | None
    qemu_cpu: float | None
    qemu_memory_peak_bytes: int | None
    gateway_start: float | None
    refusals: dict[str, int]
    exposed_ports: list[tuple[int, int, str, str]]

class Boot(TypedDict):
    """How a VM came up, and how long it took, in seconds."""

    origin: str
    admission: float
    prepare: float
    spawn: float
    guest_wait: float
    gateway_start: float | None

class Reader(Protocol):
    """What a file's content is read from."""

    def read(self, size: int, /) -> bytes: ...

class Writer(Protocol):
    """What a file's content is written to."""

    def write(self, data: bytes, /) -> object: ...

@final
class OutputStream:
    """What a VM writes, for one call: pieces of stream 0 (boot log), 1 or 2."""

    def __new__(cls) -> OutputStream: ...
    def next(self) -> Awaitable[list[tuple[int, bytes]] | None]: ...

@final
class Process:
    """A process of a VM."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def is_alive(self) -> bool: ...
    def ended(self) -> Awaitable[int | None]: ...
    def signal(self, number: int) -> None: ...

@final
class Vm:
    """A VM."""

    @property
    def vm_id(self) -> str: ...
    @property
    def exposed_ports(self) -> list[tuple[int, int, str, str]]: ...
    @property
    def process(self) -> Process: ...
    @property
    def gateway(self) -> Process | None: ...
    @property
    def boot(self) -> Boot: ...
    def exec(self, program: Program, stream: OutputStream | None = None) -> Awaitable[Outcome]: ...
    def write_file(self, path: str, content: bytes | PathLike[str] | Reader, executable: bool) -> Awaitable[int]: ...
    def read_file(self, path: str, destination: PathLike[str] | Writer) -> Awaitable[int]: ...
    def list_files(self, path: str) -> Awaitable[list[tuple[bool, int, str]]]: ...
    def ping(self) -> Awaitable[float]: ...
    def open_channel(self) -> Awaitable[None]: ...
    def close_channel(self) -> Awaitable[None]: ...
    def destroy(self, patience: float | None = None) -> Awaitable[None]: ...

@final
class Session:
    """A VM that is kept for many executions."""

    @property
    def vm_id(self) -> str: ...
    @property
    def exposed_ports(self) -> list[tuple[int, int, str, str]]: ...
    @property
    def exec_count(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def exec(self, program: Program, stream: OutputStream | None = None) -> Awaitable[Outcome]: ...
    def write_file(self, path: str, content: bytes | PathLike[str] | Reader, executable: bool) -> Awaitable[int]: ...
    def read_file(self, path: str, destination: PathLike[str] | Writer) -> Awaitable[int]: ...
    def list_files(self, path: str) -> Awaitable[list[tuple[bool, int, str]]]: ...
    def close(self) -> Awaitable[None]: ...

@final
class Scheduler:
    """Runs code in VMs."""

    @staticmethod
    def start(config: Config) -> Awaitable[Scheduler]: ...
    def run(
        self, vm: VmSpec, program: Program, stream: OutputStream | None = None, boot_log: bool = False
    ) -> Awaitable[Outcome]: ...
    def session(
        self, vm: VmSpec, idle_timeout: float | None = None, stream: OutputStream | None = None
    ) -> Awaitable[Session]: ...
    def create_vm(self, vm: VmSpec, stream: OutputStream | None = None) -> Awaitable[Vm]: ...
    def wait_pool_ready(self, patience: float) -> Awaitable[None]: ...
    def close(self) -> Awaitable[None]: ...

def shut_down() -> None: ...
def forked() -> None: ...
def parse_resolver(text: str) -> str: ...
def limits() -> dict[str, int]: ...
