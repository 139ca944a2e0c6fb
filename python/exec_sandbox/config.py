"""What a scheduler is started with: plain data, checked when it is made."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from exec_sandbox import _native, constants
from exec_sandbox.models import Language
from exec_sandbox.platform_utils import get_cache_dir

MemoryOvercommitRatio = Annotated[float, Field(ge=1, le=10, allow_inf_nan=False)]
CpuOvercommitRatio = Annotated[float, Field(ge=1, le=20, allow_inf_nan=False)]
HostMemoryReserveRatio = Annotated[float, Field(ge=0.01, le=0.5, allow_inf_nan=False)]
HostCpuReserveCores = Annotated[float, Field(ge=0, le=16, allow_inf_nan=False)]
Resolver = Annotated[str, AfterValidator(_native.parse_resolver)]
S3Uploads = Annotated[int, Field(ge=1, le=16)]


def disk_snapshots() -> Path:
    """Where installed packages are kept unless something else is said."""
    return get_cache_dir() / "package-layers"


def memory_snapshots() -> Path:
    """Where snapshots of memory are kept unless something else is said."""
    return get_cache_dir() / "memory-snapshots"


class Choices(BaseModel):
    """What may be chosen: the fields that configurations and settings have in common."""

    warm_pool_size: int = Field(default=0, ge=0, description="VMs of each language that are kept ready.")
    default_memory_mb: int = Field(
        default=constants.DEFAULT_MEMORY_MB,
        ge=constants.MIN_MEMORY_MB,
        description="Memory of a VM whose request names none, in MiB.",
    )
    default_timeout_seconds: int = Field(
        default=constants.DEFAULT_TIMEOUT_SECONDS,
        ge=1,
        le=constants.MAX_TIMEOUT_SECONDS,
        description="Time of a program whose request names none.",
    )
    session_idle_timeout_seconds: int = Field(
        default=300, ge=10, le=3600, description="After so long without an operation a session ends."
    )
    images_dir: Path | None = Field(
        default=None, description="Where images are; None: $EXEC_SANDBOX_IMAGES_DIR, else `images` in the cache."
    )
    disk_snapshot_cache_dir: Path = Field(
        default_factory=disk_snapshots, description="Where installed packages are kept."
    )
    memory_snapshot_cache_dir: Path = Field(
        default_factory=memory_snapshots, description="Where snapshots of memory are."
    )
    s3_bucket: str | None = Field(default=None, description="The bucket that packages and snapshots are shared in.")
    s3_region: str = Field(default="us-east-1", description="The bucket's region.")
    s3_prefix: str = Field(default="snapshots/", description="How the names of shared objects begin.")
    max_concurrent_s3_uploads: S3Uploads = Field(default=4, description="What is uploaded at once.")
    memory_overcommit_ratio: MemoryOvercommitRatio = Field(
        default=constants.DEFAULT_MEMORY_OVERCOMMIT_RATIO,
        description="How many times the host's memory is promised to VMs.",
    )
    cpu_overcommit_ratio: CpuOvercommitRatio = Field(
        default=constants.DEFAULT_CPU_OVERCOMMIT_RATIO,
        description="How many times the host's cores may boot or execute at once.",
    )
    host_memory_reserve_ratio: HostMemoryReserveRatio = Field(
        default=constants.DEFAULT_HOST_MEMORY_RESERVE_RATIO,
        description="Share of the host's memory that VMs never get.",
    )
    host_cpu_reserve_cores: HostCpuReserveCores = Field(
        default=constants.DEFAULT_HOST_CPU_RESERVE_CORES, description="Cores of the host that VMs never get."
    )
    enable_package_validation: bool = Field(
        default=True, description="Whether packages must be among those that are used most, by name."
    )
    auto_download_assets: bool = Field(default=True, description="Whether a missing image is downloaded.")
    assets_url: str | None = Field(
        default=None, description="Where images are downloaded from: a base URL or a directory."
    )
    network_exceptions: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="Ranges that VMs reach although they are private or of this host."
    )
    resolvers: tuple[Resolver, ...] | None = Field(
        default=None,
        description="Who is asked for names, 1 to 8 of `address` or `address:port`; None: the host's resolvers.",
    )
    registries: dict[Language, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Hosts that a language's packages come from; of others $EXEC_SANDBOX_REGISTRIES, else the image's.",
    )
    package_indexes: dict[Language, str] = Field(
        default_factory=dict,
        description="HTTPS indexes that a language's packages come from; of others the environment's, else the image's.",
    )
    package_ca: Path | None = Field(
        default=None,
        description="Certificates, in PEM, that indexes are known by; None: the environment's, else this host's.",
    )


class SchedulerConfig(Choices):
    """The configuration of a `Scheduler`. It does not change; `model_copy(update=…)` makes another one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __hash__(self) -> int:
        """Of all fields but those that have no hash."""
        return hash(tuple(value for name, value in self if name not in {"registries", "package_indexes"}))
