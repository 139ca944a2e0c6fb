"""The build backend: maturin's, with `sbx` and the network gateway put into the wheel.

Owns how they come to where maturin takes them from, and in which profile all is compiled: the config setting `profile`, else
`$EXEC_SANDBOX_BUILD_PROFILE`, else `release`. All else is maturin's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import maturin

if TYPE_CHECKING:
    from collections.abc import Mapping

    Settings = Mapping[str, Any] | None

get_requires_for_build_wheel = maturin.get_requires_for_build_wheel
get_requires_for_build_editable = maturin.get_requires_for_build_editable
get_requires_for_build_sdist = maturin.get_requires_for_build_sdist

_SETTING = "profile"
_VARIABLE = "EXEC_SANDBOX_BUILD_PROFILE"
_DEFAULT = "release"

# What is put into the wheel, by the packages of the workspace.
_PROGRAMS = {"exec-sandbox-cli": "sbx", "exec-sandbox-gateway": "exec-sandbox-gateway"}

# Backends are called in the root of the source.
_SCRIPTS = Path("python/exec_sandbox.data/scripts")


def build_wheel(directory: str, settings: Settings = None, metadata_directory: str | None = None) -> str:
    """A wheel with the extension module and the programs; its name."""
    _stage_programs(_profile(settings))
    return str(maturin.build_wheel(directory, _for_maturin(settings), metadata_directory))


def build_editable(directory: str, settings: Settings = None, metadata_directory: str | None = None) -> str:
    """A wheel that refers to this directory; its name."""
    _stage_programs(_profile(settings))
    return str(maturin.build_editable(directory, _for_maturin(settings), metadata_directory))


def prepare_metadata_for_build_wheel(directory: str, settings: Settings = None) -> str:
    """What a wheel would say of itself; the name of the directory that says it."""
    # maturin wants it to be there for whatever it does.
    _SCRIPTS.mkdir(parents=True, exist_ok=True)
    return str(maturin.prepare_metadata_for_build_wheel(directory, _for_maturin(settings)))


def build_sdist(directory: str, settings: Settings = None) -> str:
    """The source as an archive: what is tracked; its name."""
    _SCRIPTS.mkdir(parents=True, exist_ok=True)
    return str(maturin.build_sdist(directory, _for_maturin(settings)))


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def _profile(settings: Settings) -> str:
    return str((settings or {}).get(_SETTING) or os.environ.get(_VARIABLE) or _DEFAULT)


def _for_maturin(settings: Settings) -> dict[str, Any]:
    rest = {name: value for name, value in (settings or {}).items() if name != _SETTING}
    return {"maturin.build-args": ["--profile", _profile(settings)], **rest}


def _stage_programs(profile: str) -> None:
    """Compiles the programs and copies them to where maturin looks for what goes beside the interpreter."""
    command = ["cargo", "build", "--locked", "--profile", profile, "--message-format=json-render-diagnostics"]
    for package, name in _PROGRAMS.items():
        command += ["--package", package, "--bin", name]
    built = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    messages = (json.loads(line) for line in built.stdout.splitlines() if line.startswith(b"{"))
    programs = {Path(path).name: path for message in messages if (path := message.get("executable"))}
    if sorted(programs) != sorted(_PROGRAMS.values()):
        raise RuntimeError(f"cargo built {sorted(programs)} where {sorted(_PROGRAMS.values())} were asked for")
    _SCRIPTS.mkdir(parents=True, exist_ok=True)
    for name, path in programs.items():
        # Written anew: what is there may be running.
        staged = _SCRIPTS / name
        staged.unlink(missing_ok=True)
        shutil.copy(path, staged)
