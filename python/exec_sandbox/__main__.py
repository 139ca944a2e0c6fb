"""`python -m exec_sandbox` and the command `exec-sandbox`: both become `sbx`, which was installed with the package."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from exec_sandbox import _programs

# What a shell says of a command that it does not find.
_NOT_FOUND = 127


def main() -> NoReturn:
    """Becomes `sbx` with the arguments of this process; ends it with 127 if it cannot."""
    program = _programs.find(_programs.SBX)
    if program is None:
        places = ", ".join(_programs.directories())
        sys.stderr.write(
            f"exec-sandbox: {_programs.SBX} is not in {places}: reinstall the package "
            "(python -m pip install --force-reinstall exec-sandbox)\n"
        )
        sys.exit(_NOT_FOUND)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, [str(program), *sys.argv[1:]])  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main()
