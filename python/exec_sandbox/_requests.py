"""What a caller asks for, in the words of the Rust half, which checks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exec_sandbox import _native
    from exec_sandbox.models import ExposedPort, Language, PortMapping


def vm(
    *,
    language: str | Language,
    memory_mb: int | None = None,
    packages: Sequence[str] | None = None,
    allow_network: bool = False,
    allowed_domains: Sequence[str] | None = None,
    expose_ports: Sequence[PortMapping | ExposedPort | int] | None = None,
) -> _native.VmSpec:
    """A VM. Raises `ValueError` for domains without a network: nobody means nothing by them."""
    if allowed_domains is not None and not allow_network:
        raise ValueError("allowed_domains has no effect without allow_network=True")
    _check_number("memory_mb", memory_mb, (int,))
    domains = None if allowed_domains is None else _texts("allowed_domains", allowed_domains)
    return {
        "language": name(language),
        "memory_mib": memory_mb,
        "packages": _texts("packages", packages or ()),
        "network": {
            "allow": allow_network,
            "domains": domains,
            "expose": [_port(port) for port in expose_ports or ()],
        },
    }


def program(
    code: str, *, timeout_seconds: float | None = None, env_vars: Mapping[str, str] | None = None
) -> _native.Program:
    """A program. Raises `TypeError` for what is no text or number."""
    if not isinstance(code, str):
        raise TypeError(f"code must be a string, not {type(code).__name__}")
    variables = {} if env_vars is None else env_vars
    if not isinstance(variables, Mapping):
        raise TypeError(f"env_vars must be a mapping of strings, not {type(variables).__name__}")
    for name_and_value in variables.items():
        if not all(isinstance(text, str) for text in name_and_value):
            raise TypeError(f"env_vars must have strings as names and values, not {name_and_value!r}")
    _check_number("timeout_seconds", timeout_seconds, (int, float))
    return {"code": code, "timeout": timeout_seconds, "env": list(variables.items())}


def idle_timeout(seconds: float | None) -> float | None:
    """A session's patience. Raises `TypeError` for what is no number."""
    _check_number("idle_timeout_seconds", seconds, (int, float))
    return seconds


def name(language: str | Language) -> str:
    """The name of a language."""
    return str(getattr(language, "value", language))


def _check_number(what: str, given: float | None, kinds: tuple[type, ...]) -> None:
    # True is an int as well, and never what was meant.
    if given is not None and (not isinstance(given, kinds) or isinstance(given, bool)):
        kind = "a number" if float in kinds else "a whole number"
        raise TypeError(f"{what} must be {kind}, not {type(given).__name__}")


def _texts(what: str, given: Sequence[str]) -> list[str]:
    # A string is a sequence of strings too, and never what was meant.
    if isinstance(given, str):
        raise TypeError(f"{what} must be a list of strings, not a string")
    texts = list(given)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{what} must be a list of strings, and has {text!r}")
    return texts


def _port(port: PortMapping | ExposedPort | int) -> tuple[int, int | None, str]:
    # True is an int as well, and never what was meant.
    if not isinstance(port, int):
        try:
            return port.internal, port.external, port.protocol
        except AttributeError:
            pass
    elif not isinstance(port, bool):
        return port, None, "tcp"
    raise TypeError(f"expose_ports must be port numbers and PortMappings, and has {port!r}")
