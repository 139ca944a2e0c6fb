"""Models and constants: fields, defaults and bounds, and that constants are the Rust half's."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from exec_sandbox import (
    ExecutionResult,
    ExposedPort,
    FileInfo,
    Language,
    PortMapping,
    TimingBreakdown,
    _native,
    constants,
)

TIMES = {"setup_ms": 1, "boot_ms": 2, "execute_ms": 3, "total_ms": 6}
OPTIONAL_TIMES = {
    "admission_ms",
    "connect_ms",
    "l1_restore_ms",
    "teardown_ms",
    "overlay_ms",
    "qemu_cmd_build_ms",
    "gvproxy_start_ms",
    "packages_ms",
    "qemu_fork_ms",
    "guest_wait_ms",
}


def test_languages_are_their_names() -> None:
    assert [language.value for language in Language] == ["python", "javascript", "raw"]
    assert Language("raw") is Language.RAW
    assert isinstance(Language.PYTHON, str)
    assert Language.PYTHON == "python"  # type: ignore[comparison-overlap]  # what is tested


@pytest.mark.parametrize(
    ("field", "valid", "invalid"),
    [
        ("internal", [1, 80, 65535], [0, -1, 65536, None]),
        ("external", [None, 1024, 65535], [0, 80, 1023, 65536]),
        ("protocol", ["tcp", "udp"], ["TCP", "sctp", ""]),
    ],
)
def test_a_mapping_of_ports_has_its_bounds(field: str, valid: list[Any], invalid: list[Any]) -> None:
    for value in valid:
        assert getattr(PortMapping(**{"internal": 80, field: value}), field) == value
    for value in invalid:
        with pytest.raises(ValidationError, match=field):
            PortMapping(**{"internal": 80, field: value})


def test_a_mapping_of_ports_has_defaults() -> None:
    assert PortMapping(internal=80).model_dump() == {"internal": 80, "external": None, "protocol": "tcp"}


def test_an_exposed_port_says_where_it_is() -> None:
    port = ExposedPort(internal=80, external=8080)
    assert port.model_dump() == {"internal": 80, "external": 8080, "host": "127.0.0.1", "protocol": "tcp"}
    assert port.url == "http://127.0.0.1:8080"


def test_a_file_has_a_name_a_kind_and_a_size() -> None:
    assert FileInfo(name="a", is_dir=False, size=7).model_dump() == {"name": "a", "is_dir": False, "size": 7}


def test_times_that_were_not_measured_are_absent() -> None:
    timing = TimingBreakdown(**TIMES).model_dump()
    assert timing == {**TIMES, **dict.fromkeys(OPTIONAL_TIMES), "boot_retries": 0}


@pytest.mark.parametrize("missing", TIMES)
def test_four_times_are_always_measured(missing: str) -> None:
    with pytest.raises(ValidationError, match=missing):
        TimingBreakdown(**{name: value for name, value in TIMES.items() if name != missing})


@pytest.mark.parametrize("field", [*TIMES, *OPTIONAL_TIMES])
def test_times_are_whole_milliseconds(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TimingBreakdown.model_validate({**TIMES, field: 0.5})


def test_a_result_has_defaults_for_all_but_what_there_always_is() -> None:
    timing = TimingBreakdown(**TIMES)
    result = ExecutionResult(stdout="a", stderr="b", exit_code=3, timing=timing)
    assert result.model_dump(exclude={"timing"}) == {
        "stdout": "a",
        "stderr": "b",
        "exit_code": 3,
        "execution_time_ms": None,
        "spawn_ms": None,
        "process_ms": None,
        "external_cpu_time_ms": None,
        "external_memory_peak_mb": None,
        "external_cpu_nr_throttled": None,
        "warm_pool_hit": False,
        "l1_cache_hit": False,
        "exposed_ports": [],
        "refusals": {},
    }
    assert ExecutionResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize(
    ("constant", "limit"),
    [
        ("MAX_CODE_SIZE", "max_code_chars"),
        ("MIN_MEMORY_MB", "min_memory_mib"),
        ("MAX_TIMEOUT_SECONDS", "max_timeout_seconds"),
        ("MAX_FILE_SIZE_BYTES", "max_file_bytes"),
    ],
)
def test_a_constant_is_what_the_rust_half_enforces(constant: str, limit: str) -> None:
    assert getattr(constants, constant) == _native.limits()[limit]


def test_constants_are_those_of_the_contract() -> None:
    public = {name: value for name, value in vars(constants).items() if name.isupper()}
    assert public.pop("ENV_VAR_FORBIDDEN_CONTROL_CHARS") == {*range(9), *range(10, 32), 127}
    assert public == {
        "DEFAULT_MEMORY_MB": 192,
        "MIN_MEMORY_MB": 128,
        "DEFAULT_TIMEOUT_SECONDS": 30,
        "MAX_TIMEOUT_SECONDS": 300,
        "MAX_CODE_SIZE": 1_048_576,
        "MAX_PACKAGES": 50,
        "MAX_ENV_VARS": 100,
        "MAX_ENV_VAR_NAME_LENGTH": 256,
        "MAX_ENV_VAR_VALUE_LENGTH": 4096,
        "GUEST_SANDBOX_DIR": "/home/user",
        "MAX_FILE_SIZE_BYTES": 524_288_000,
        "MAX_FILE_PATH_LENGTH": 4096,
        "MAX_EXPOSED_PORTS": 10,
        "PORT_FORWARD_MIN_HOST_PORT": 1024,
        "PORT_FORWARD_BIND_HOST": "127.0.0.1",
        "DEFAULT_MEMORY_OVERCOMMIT_RATIO": 5.0,
        "DEFAULT_CPU_OVERCOMMIT_RATIO": 2.0,
        "DEFAULT_HOST_MEMORY_RESERVE_RATIO": 0.08,
        "DEFAULT_HOST_CPU_RESERVE_CORES": 0.5,
        "SIGKILL_EXIT_CODE": 137,
    }
