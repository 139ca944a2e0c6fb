"""What the Python half costs: its import, a scheduler's start, and what an execution takes longer than in Rust.

Every figure is measured in interpreters and sessions of this run; medians, with the 95th percentile in brackets.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exec_sandbox import _native

_IMPORT = """
import time
began = time.perf_counter()
{statement}
took = time.perf_counter() - began
resident = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(took * 1000, int(resident) / 1024)
"""

_START = """
import asyncio, time
from exec_sandbox import Scheduler

async def main():
    began = time.perf_counter()
    async with Scheduler():
        print((time.perf_counter() - began) * 1000)

asyncio.run(main())
"""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=15, help="interpreters of each kind (15)")
    parser.add_argument("--executions", type=int, default=300, help="executions in the session (300)")
    options = parser.parse_args()
    for statement in (
        "pass",
        "import asyncio",
        "import pydantic",
        "import exec_sandbox",
        "from exec_sandbox import Scheduler",
    ):
        figures = [_fresh(_IMPORT.format(statement=statement)) for _ in range(options.n)]
        _say(f"{statement}, ms", [took for took, _ in figures])
        _say(f"{statement}, MiB resident", [resident for _, resident in figures])
    _say("scheduler start in a fresh process, ms", [_fresh(_START)[0] for _ in range(options.n)])
    asyncio.run(_executions(options.executions))


async def _executions(count: int) -> None:
    from exec_sandbox import Scheduler, _results  # noqa: PLC0415  # not before the imports have been measured

    in_rust: list[float] = []
    convert = _results.of_exec

    def converting(outcome: _native.Outcome) -> object:
        in_rust.append(outcome["total"] * 1000)
        return convert(outcome)

    _results.of_exec = converting  # type: ignore[assignment]
    in_python: list[float] = []
    async with Scheduler() as scheduler, await scheduler.session(language="python") as session:
        for _ in range(count):
            began = time.perf_counter()
            await session.exec("pass")
            in_python.append((time.perf_counter() - began) * 1000)
    _say("exec('pass') from call to return in Rust, ms", in_rust)
    _say("the same in Python, ms", in_python)
    _say("what Python adds, ms", [python - rust for python, rust in zip(in_python, in_rust, strict=True)])


def _fresh(program: str) -> list[float]:
    """The numbers that a program prints in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def _say(what: str, figures: list[float]) -> None:
    high = statistics.quantiles(figures, n=20)[-1]
    print(f"{what:55} {statistics.median(figures):8.2f} ({high:.2f})", flush=True)


if __name__ == "__main__":
    main()
