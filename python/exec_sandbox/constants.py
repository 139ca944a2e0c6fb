"""Numbers of the public contract. The Rust half enforces them; a test compares those that it tells."""

from __future__ import annotations

from typing import Final

DEFAULT_MEMORY_MB: Final = 192
"""Memory of a VM whose request names none, in MiB."""
MIN_MEMORY_MB: Final = 128
"""Least memory that a guest works with, in MiB."""

DEFAULT_TIMEOUT_SECONDS: Final = 30
"""Time of a program whose request names none."""
MAX_TIMEOUT_SECONDS: Final = 300
"""Longest time of a program; the shortest is a second."""

MAX_CODE_SIZE: Final = 1_048_576
"""Longest code, in characters."""
MAX_PACKAGES: Final = 50
"""Most packages of one VM."""

MAX_ENV_VARS: Final = 100
"""Most environment variables of one execution."""
MAX_ENV_VAR_NAME_LENGTH: Final = 256
"""Longest name of an environment variable, in characters."""
MAX_ENV_VAR_VALUE_LENGTH: Final = 4096
"""Longest value of an environment variable, in characters."""
ENV_VAR_FORBIDDEN_CONTROL_CHARS: Final = frozenset({*range(0x20), 0x7F} - {0x09})
"""Code points that no value of an environment variable has: control characters but the tabulator."""

GUEST_SANDBOX_DIR: Final = "/home/user"
"""Where programs start, and what the paths of files are relative to."""
MAX_FILE_SIZE_BYTES: Final = 500 * 1024 * 1024
"""Longest file that goes in or out."""
MAX_FILE_PATH_LENGTH: Final = 4096
"""Longest path of a file, in bytes."""

MAX_EXPOSED_PORTS: Final = 10
"""Most ports of one VM that the host reaches."""
PORT_FORWARD_MIN_HOST_PORT: Final = 1024
"""Least port of the host for a port of a VM: those below are the system's."""
PORT_FORWARD_BIND_HOST: Final = "127.0.0.1"
"""The host's address on which ports of VMs are reached: nobody outside of it reaches them."""

DEFAULT_MEMORY_OVERCOMMIT_RATIO: Final = 5.0
"""How many times the host's memory is promised to VMs: few of them use all of theirs at once."""
DEFAULT_CPU_OVERCOMMIT_RATIO: Final = 2.0
"""How many times the host's cores may boot or execute at once."""
DEFAULT_HOST_MEMORY_RESERVE_RATIO: Final = 0.08
"""Share of the host's memory that VMs never get."""
DEFAULT_HOST_CPU_RESERVE_CORES: Final = 0.5
"""Cores of the host that VMs never get."""

SIGKILL_EXIT_CODE: Final = 137
"""Exit code of a program that SIGKILL ended, or that used up the VM's memory: 128 + 9. It ends a session."""
