"""The programs that were installed with the package."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

SBX = "sbx"
GATEWAY = "exec-sandbox-gateway"


def find(name: str) -> Path | None:
    """Where a program of the package is. None: nowhere."""
    return next((path for path in (Path(place, name) for place in directories()) if os.access(path, os.X_OK)), None)


def directories() -> list[str]:
    """Where installers put programs: of this environment, of the user, and beside packages that lie apart (`pip --target`)."""
    beside = Path(__file__).resolve().parent.parent / "bin"
    schemes = [sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")]
    return list(dict.fromkeys([*(sysconfig.get_path("scripts", scheme) for scheme in schemes), str(beside)]))
