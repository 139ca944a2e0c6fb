"""Settings of a `VmManager`, from the environment: `EXEC_SANDBOX_` and the name of the field in capitals."""

import platform
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from exec_sandbox import config, constants

# Whose names differ from those of the configuration.
_RENAMED = {"base_images_dir": "images_dir"}


class Settings(BaseSettings):
    """What a `VmManager` is started with. Other names are ignored, so that settings of a program may be passed on."""

    model_config = SettingsConfigDict(env_prefix="EXEC_SANDBOX_", env_ignore_empty=True, extra="ignore")

    base_images_dir: Path | None = Field(
        default=None, description="Where images are; None: $EXEC_SANDBOX_IMAGES_DIR, else `images` in the cache."
    )
    disk_snapshot_cache_dir: Path = Field(
        default_factory=config.disk_snapshots, description="Where installed packages are kept."
    )
    memory_snapshot_cache_dir: Path = Field(
        default_factory=config.memory_snapshots, description="Where snapshots of memory are."
    )
    s3_bucket: str | None = Field(default=None, description="The bucket that packages and snapshots are shared in.")
    s3_region: str = Field(default="us-east-1", description="The bucket's region.")
    max_concurrent_s3_uploads: config.S3Uploads = Field(default=4, description="What is uploaded at once.")
    memory_overcommit_ratio: config.MemoryOvercommitRatio = constants.DEFAULT_MEMORY_OVERCOMMIT_RATIO
    cpu_overcommit_ratio: config.CpuOvercommitRatio = constants.DEFAULT_CPU_OVERCOMMIT_RATIO
    host_memory_reserve_ratio: config.HostMemoryReserveRatio = constants.DEFAULT_HOST_MEMORY_RESERVE_RATIO
    host_cpu_reserve_cores: config.HostCpuReserveCores = constants.DEFAULT_HOST_CPU_RESERVE_CORES
    auto_download_assets: bool = Field(default=True, description="Whether a missing image is downloaded.")
    assets_url: str | None = Field(default=None, description="Where from: a base URL or a directory.")
    force_emulation: bool = Field(default=False, description="Software emulation, whatever the host has.")
    qemu_bin_x86: Path | None = Field(
        default=None, description="QEMU for x86_64; None: the image's, else that of the PATH."
    )
    qemu_bin_arm: Path | None = Field(
        default=None, description="QEMU for aarch64; None: the image's, else that of the PATH."
    )

    @property
    def qemu_bin(self) -> Path | None:
        """QEMU for this machine."""
        return self.qemu_bin_arm if platform.machine().lower() in {"aarch64", "arm64"} else self.qemu_bin_x86

    def to_scheduler_config(self) -> config.SchedulerConfig:
        """The configuration of a scheduler with the same choices; what was not chosen is the configuration's default."""
        chosen = {_RENAMED.get(name, name): getattr(self, name) for name in self.model_fields_set}
        known = config.SchedulerConfig.model_fields
        return config.SchedulerConfig(**{name: value for name, value in chosen.items() if name in known})
