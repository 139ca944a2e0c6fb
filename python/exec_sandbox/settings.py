"""Settings of a `VmManager`, from the environment: `EXEC_SANDBOX_` and the name of the field in capitals."""

import platform
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from exec_sandbox import config

# The Rust half reads them, in a form of their own, for languages of which nothing is chosen here.
_READ_BELOW = {"exec_sandbox_registries", "exec_sandbox_package_indexes"}


class Settings(BaseSettings, config.Choices):
    """What a `VmManager` is started with. Other names are ignored, so that settings of a program may be passed on."""

    model_config = SettingsConfigDict(env_prefix="EXEC_SANDBOX_", env_ignore_empty=True, extra="ignore")

    base_images_dir: Path | None = Field(default=None, description="Where images are; it comes before `images_dir`.")
    force_emulation: bool = Field(default=False, description="Software emulation, whatever the host has.")
    qemu_bin_x86: Path | None = Field(
        default=None, description="QEMU for x86_64; None: the image's, else that of the PATH."
    )
    qemu_bin_arm: Path | None = Field(
        default=None, description="QEMU for aarch64; None: the image's, else that of the PATH."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Those of all settings; of the environment, what the Rust half does not read itself."""
        if isinstance(env_settings, EnvSettingsSource):
            variables = env_settings.env_vars.items()
            env_settings.env_vars = {name: value for name, value in variables if name.lower() not in _READ_BELOW}
        return super().settings_customise_sources(
            settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
        )

    @property
    def qemu_bin(self) -> Path | None:
        """QEMU for this machine."""
        return self.qemu_bin_arm if platform.machine().lower() in {"aarch64", "arm64"} else self.qemu_bin_x86

    def to_scheduler_config(self) -> config.SchedulerConfig:
        """The configuration of a scheduler with the same choices; what was not chosen is the configuration's default."""
        known = config.Choices.model_fields.keys()
        chosen = {name: getattr(self, name) for name in self.model_fields_set & known}
        if self.base_images_dir is not None:
            chosen["images_dir"] = self.base_images_dir
        return config.SchedulerConfig(**chosen)
