"""`python -m exec_sandbox` and the command `exec-sandbox`: both become `sbx`, which was installed with the package."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

_NAME = "sbx.exe" if os.name == "nt" else "sbx"

# What a shell says of a command that it does not find.
_NOT_FOUND = 127


def main() -> NoReturn:
    """Becomes `sbx` with the arguments of this process; ends it with 127 if it cannot."""
    looked_in = _script_directories()
    program = next((path for path in (Path(place, _NAME) for place in looked_in) if os.access(path, os.X_OK)), None)
    if program is None:
        places = ", ".join(looked_in)
        sys.stderr.write(
            f"exec-sandbox: {_NAME} is not in {places}: reinstall the package "
            "(python -m pip install --force-reinstall exec-sandbox)\n"
        )
        sys.exit(_NOT_FOUND)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, [str(program), *sys.argv[1:]])  # noqa: S606  # no shell is wanted


def _script_directories() -> list[str]:
    """Where installers put programs: of this environment, of the user, and beside packages that lie apart (`pip --target`)."""
    beside = Path(__file__).resolve().parent.parent / "bin"
    schemes = [sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")]
    return list(dict.fromkeys([*(sysconfig.get_path("scripts", scheme) for scheme in schemes), str(beside)]))


if __name__ == "__main__":
    main()
