"""Configurations, in the words of the Rust half."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from exec_sandbox import _programs

if TYPE_CHECKING:
    from exec_sandbox import _native
    from exec_sandbox.config import SchedulerConfig
    from exec_sandbox.settings import Settings


def of_scheduler(config: SchedulerConfig | None) -> _native.Config:
    """What a scheduler is started with."""
    native = _defaults()
    if config is None:
        return native
    native["warm_pool_size"] = config.warm_pool_size
    native["package_validation"] = config.enable_package_validation
    native["default_memory_mib"] = config.default_memory_mb
    native["default_timeout"] = config.default_timeout_seconds
    native["session_idle_timeout"] = config.session_idle_timeout_seconds
    native["images_dir"] = config.images_dir
    native["snapshot_dir"] = config.memory_snapshot_cache_dir
    native["layer_dir"] = config.disk_snapshot_cache_dir
    if config.s3_bucket is not None:
        uploads = config.max_concurrent_s3_uploads
        native["s3"] = (config.s3_bucket, config.s3_region, config.s3_prefix, uploads)
    native["assets_url"] = config.assets_url
    native["auto_download_assets"] = config.auto_download_assets
    native["host_memory_reserve_ratio"] = config.host_memory_reserve_ratio
    native["memory_overcommit_ratio"] = config.memory_overcommit_ratio
    native["host_cpu_reserve_cores"] = config.host_cpu_reserve_cores
    native["cpu_overcommit_ratio"] = config.cpu_overcommit_ratio
    native["network_exceptions"] = [str(network) for network in config.network_exceptions]
    native["resolvers"] = None if config.resolvers is None else list(config.resolvers)
    native["registries"] = [(language.value, list(hosts)) for language, hosts in config.registries.items()]
    native["package_indexes"] = [(language.value, url) for language, url in config.package_indexes.items()]
    native["package_ca"] = config.package_ca
    return native


def of_settings(settings: Settings) -> _native.Config:
    """What a manager of VMs is started with."""
    native = of_scheduler(settings.to_scheduler_config())
    native["qemu"] = settings.qemu_bin
    native["force_emulation"] = settings.force_emulation
    return native


def _defaults() -> _native.Config:
    return {
        "warm_pool_size": None,
        "package_validation": None,
        "default_memory_mib": None,
        "default_timeout": None,
        "session_idle_timeout": None,
        "images_dir": None,
        "snapshot_dir": None,
        "assets_url": None,
        "auto_download_assets": None,
        "qemu": None,
        # What the environment names comes first; the one on the PATH may be another version's.
        "gateway": None if "EXEC_SANDBOX_GATEWAY" in os.environ else _programs.find(_programs.GATEWAY),
        "force_emulation": None,
        "host_memory_reserve_ratio": None,
        "memory_overcommit_ratio": None,
        "host_cpu_reserve_cores": None,
        "cpu_overcommit_ratio": None,
        "network_exceptions": [],
        "resolvers": None,
        "registries": [],
        "package_indexes": [],
        "package_ca": None,
        "layer_dir": None,
        "s3": None,
    }
