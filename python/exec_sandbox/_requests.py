"""What a caller asks for, in the words of the Rust half, which checks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    """A program."""
    return {"code": code, "timeout": timeout_seconds, "env": list((env_vars or {}).items())}


def name(language: str | Language) -> str:
    """The name of a language."""
    return str(getattr(language, "value", language))


def _texts(what: str, given: Sequence[str]) -> list[str]:
    # A string is a sequence of strings too, and never what was meant.
    if isinstance(given, str):
        raise TypeError(f"{what} must be a list of strings, not a string")
    return list(given)


def _port(port: PortMapping | ExposedPort | int) -> tuple[int, int | None, str]:
    if isinstance(port, int):
        return port, None, "tcp"
    return port.internal, port.external, port.protocol
