"""Configurations and settings: every field with its default and its bounds, and where settings come from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from exec_sandbox import Language, Scheduler, SchedulerConfig, VmConfigError, _config
from exec_sandbox.platform_utils import get_cache_dir
from exec_sandbox.settings import Settings

DEFAULTS: dict[str, Any] = {
    "warm_pool_size": 0,
    "default_memory_mb": 192,
    "default_timeout_seconds": 30,
    "session_idle_timeout_seconds": 300,
    "images_dir": None,
    "disk_snapshot_cache_dir": Path("/c/package-layers"),
    "memory_snapshot_cache_dir": Path("/c/memory-snapshots"),
    "s3_bucket": None,
    "s3_region": "us-east-1",
    "s3_prefix": "snapshots/",
    "max_concurrent_s3_uploads": 4,
    "memory_overcommit_ratio": 5.0,
    "cpu_overcommit_ratio": 2.0,
    "host_memory_reserve_ratio": 0.08,
    "host_cpu_reserve_cores": 0.5,
    "enable_package_validation": True,
    "auto_download_assets": True,
    "assets_url": None,
    "network_exceptions": (),
    "resolvers": None,
    "registries": {},
    "package_indexes": {},
    "package_ca": None,
}

# Least and most; None is no bound.
BOUNDS: dict[str, tuple[float, float | None]] = {
    "warm_pool_size": (0, None),
    "default_memory_mb": (128, None),
    "default_timeout_seconds": (1, 300),
    "session_idle_timeout_seconds": (10, 3600),
    "max_concurrent_s3_uploads": (1, 16),
    "memory_overcommit_ratio": (1.0, 10.0),
    "cpu_overcommit_ratio": (1.0, 20.0),
    "host_memory_reserve_ratio": (0.01, 0.5),
    "host_cpu_reserve_cores": (0.0, 16.0),
}
# Of each field something that is no default.
OTHERS: dict[str, Any] = {
    "warm_pool_size": 2,
    "default_memory_mb": 256,
    "default_timeout_seconds": 60,
    "session_idle_timeout_seconds": 600,
    "images_dir": "/i",
    "disk_snapshot_cache_dir": "/d",
    "memory_snapshot_cache_dir": "/m",
    "s3_bucket": "bucket",
    "s3_region": "eu-central-1",
    "s3_prefix": "mine/",
    "max_concurrent_s3_uploads": 8,
    "memory_overcommit_ratio": 1.5,
    "cpu_overcommit_ratio": 3.5,
    "host_memory_reserve_ratio": 0.1,
    "host_cpu_reserve_cores": 1.5,
    "enable_package_validation": False,
    "auto_download_assets": False,
    "assets_url": "https://example.com/a",
    "network_exceptions": ["10.0.0.0/8"],
    "resolvers": ["192.0.2.1:53"],
    "registries": {"python": ["packages.example"]},
    "package_indexes": {"python": "https://mirror.example/simple/"},
    "package_ca": "/ca.pem",
}
# The variables have a form of their own, and the Rust half reads them.
READ_BELOW = {"registries": "python=packages.example", "package_indexes": "python=https://mirror.example/simple/"}

RATIOS = [name for name, (least, _) in BOUNDS.items() if isinstance(least, float)]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of whoever runs the tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"EXEC_SANDBOX_{name.upper()}", raising=False)
    monkeypatch.setenv("EXEC_SANDBOX_CACHE_DIR", "/c")


def test_every_field_has_its_default() -> None:
    assert SchedulerConfig().model_dump() == DEFAULTS


@pytest.mark.parametrize(("name", "least", "most"), [(name, *bounds) for name, bounds in BOUNDS.items()])
def test_a_number_has_its_bounds(name: str, least: float, most: float | None) -> None:
    step = 0.001 if isinstance(least, float) else 1
    for value in (least, most if most is not None else 1_000_000):
        assert getattr(SchedulerConfig(**{name: value}), name) == value
    for outside in (least - step, *([] if most is None else [most + step])):
        with pytest.raises(ValidationError, match=name):
            SchedulerConfig(**{name: outside})


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_ratio_is_a_number(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=name):
        SchedulerConfig(**{name: value})


@given(name=st.sampled_from(RATIOS), value=st.floats())
def test_a_ratio_is_accepted_if_and_only_if_it_is_within_its_bounds(name: str, value: float) -> None:
    least, most = BOUNDS[name]
    assert most is not None
    try:
        accepted = getattr(SchedulerConfig(**{name: value}), name) == value
    except ValidationError:
        accepted = False
    assert accepted == (least <= value <= most)


def test_a_configuration_does_not_change() -> None:
    config = SchedulerConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.warm_pool_size = 1  # type: ignore[misc]  # what is tested
    assert config.model_copy(update={"warm_pool_size": 1}).warm_pool_size == 1


def test_a_field_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValidationError, match="warm_pool"):
        SchedulerConfig(warm_pool=1)  # type: ignore[call-arg]  # what is tested


def test_what_leads_to_the_network_is_text_that_is_checked() -> None:
    config = SchedulerConfig(
        network_exceptions=["10.0.0.0/8", "192.0.2.1", "fd00::/8"],
        resolvers=["192.0.2.1", "[2001:db8::1]:5353"],
        registries={"python": ["packages.example"]},
        package_indexes={"python": "https://mirror.example/simple/"},
        package_ca="/etc/ca.pem",
    )
    assert [str(network) for network in config.network_exceptions] == ["10.0.0.0/8", "192.0.2.1/32", "fd00::/8"]
    assert config.resolvers == ("192.0.2.1:53", "[2001:db8::1]:5353")
    assert config.registries == {Language.PYTHON: ("packages.example",)}
    assert config.package_indexes == {Language.PYTHON: "https://mirror.example/simple/"}
    native = _config.of_scheduler(config)
    assert native["package_indexes"] == [("python", "https://mirror.example/simple/")]
    assert native["package_ca"] == Path("/etc/ca.pem")
    assert hash(config) == hash(config.model_copy())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("network_exceptions", ["10.0.0.1/8"]),
        ("network_exceptions", ["example.com"]),
        ("resolvers", ["dns.example"]),
        ("registries", {"cobol": ["packages.example"]}),
        ("package_indexes", {"cobol": "https://mirror.example/"}),
        ("package_indexes", ["https://mirror.example/"]),
    ],
)
def test_what_leads_nowhere_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        SchedulerConfig(**{name: value})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"resolvers": []}, "1 to 8"),
        ({"resolvers": ["192.0.2.1"] * 9}, "1 to 8"),
        ({"registries": {"python": ["no host"]}}, "registries of python"),
        ({"network_exceptions": ["10.0.0.0/8"] * 257}, "network_exceptions"),
    ],
)
async def test_what_leads_to_the_network_reaches_the_scheduler(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(VmConfigError, match=why):
        async with Scheduler(SchedulerConfig(**fields)):
            pass


def test_paths_may_be_text() -> None:
    assert SchedulerConfig(images_dir="/i").images_dir == Path("/i")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"EXEC_SANDBOX_CACHE_DIR": "/c", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/c"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/exec-sandbox"),
        ({"HOME": "/h"}, "/h/.cache/exec-sandbox"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("EXEC_SANDBOX_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert get_cache_dir() == Path(expected)
    assert SchedulerConfig().memory_snapshot_cache_dir == Path(expected, "memory-snapshots")


def test_snapshots_of_memory_are_where_the_configuration_says() -> None:
    assert _config.of_scheduler(SchedulerConfig())["snapshot_dir"] == Path("/c/memory-snapshots")
    assert _config.of_scheduler(SchedulerConfig(memory_snapshot_cache_dir=Path("/s")))["snapshot_dir"] == Path("/s")
    assert _config.of_settings(Settings(memory_snapshot_cache_dir=Path("/s")))["snapshot_dir"] == Path("/s")


def test_settings_without_an_environment_choose_nothing() -> None:
    assert Settings().to_scheduler_config().model_fields_set == set()


def test_settings_have_every_field_of_the_configuration_and_some_of_their_own() -> None:
    own = {"base_images_dir", "force_emulation", "qemu_bin_x86", "qemu_bin_arm"}
    assert Settings.model_fields.keys() - own == SchedulerConfig.model_fields.keys() == DEFAULTS.keys() == OTHERS.keys()
    for name, field in SchedulerConfig.model_fields.items():
        assert repr(Settings.model_fields[name]) == repr(field)


@pytest.mark.parametrize(("name", "value"), OTHERS.items())
def test_a_setting_is_passed_on(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    expected = SchedulerConfig(**{name: value})
    assert expected != SchedulerConfig()
    assert Settings(**{name: value}).to_scheduler_config() == expected
    if name not in READ_BELOW:
        text = value if isinstance(value, str) else json.dumps(value)
        monkeypatch.setenv(f"EXEC_SANDBOX_{name.upper()}", text)
        assert Settings().to_scheduler_config() == expected


@pytest.mark.parametrize(("name", "text"), READ_BELOW.items())
def test_a_variable_that_the_rust_half_reads_is_left_to_it(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(f"EXEC_SANDBOX_{name.upper()}", text)
    assert Settings().to_scheduler_config().model_fields_set == set()
    assert Settings(**{name: OTHERS[name]}).to_scheduler_config() == SchedulerConfig(**{name: OTHERS[name]})


def test_the_directory_of_base_images_comes_first() -> None:
    settings = Settings(base_images_dir="/b", images_dir="/i")
    assert settings.to_scheduler_config() == SchedulerConfig(images_dir="/b")


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXEC_SANDBOX_BASE_IMAGES_DIR", "/i")
    monkeypatch.setenv("EXEC_SANDBOX_CPU_OVERCOMMIT_RATIO", "3.5")
    monkeypatch.setenv("EXEC_SANDBOX_FORCE_EMULATION", "true")
    monkeypatch.setenv("EXEC_SANDBOX_QEMU_BIN_X86", "/q")
    # As good as unset.
    monkeypatch.setenv("EXEC_SANDBOX_S3_BUCKET", "")
    settings = Settings()
    assert settings.force_emulation
    assert settings.qemu_bin_x86 == Path("/q")
    assert settings.to_scheduler_config() == SchedulerConfig(images_dir=Path("/i"), cpu_overcommit_ratio=3.5)


def test_settings_that_are_given_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXEC_SANDBOX_ASSETS_URL", "https://example.com/a")
    assert Settings(assets_url="https://example.com/b").to_scheduler_config().assets_url == "https://example.com/b"


@pytest.mark.parametrize("name", BOUNDS)
def test_settings_have_the_bounds_of_the_configuration(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"EXEC_SANDBOX_{name.upper()}", str(BOUNDS[name][0] - 1))
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_settings_of_other_programs_are_ignored() -> None:
    assert not hasattr(Settings(environment="production"), "environment")


@pytest.mark.parametrize(("machine", "expected"), [("x86_64", "/x"), ("aarch64", "/a"), ("arm64", "/a")])
def test_qemu_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch, machine: str, expected: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert Settings(qemu_bin_x86=Path("/x"), qemu_bin_arm=Path("/a")).qemu_bin == Path(expected)
