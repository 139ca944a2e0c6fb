"""The package in its process: imports, loops, forks, and the interpreter's exit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap

import psutil
import pytest

from exec_sandbox import Scheduler


def _python(code: str, *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a program in an interpreter of its own, which tolerates no warning."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def _silent(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.vm
def test_several_loops_one_after_the_other_and_two_kinds_of_them() -> None:
    out = _silent(
        _python("""
            import asyncio, uvloop
            from exec_sandbox import Scheduler

            async def main():
                async with Scheduler() as scheduler:
                    print((await scheduler.run("echo hi", language="raw", on_stdout=lambda _: None)).stdout, end="")

            asyncio.run(main())
            asyncio.run(main(), debug=True)
            uvloop.run(main())
        """)
    )
    assert out == "hi\n" * 3


@pytest.mark.vm
def test_an_interpreter_that_exits_in_the_middle_leaves_no_vm() -> None:
    done = _python("""
        import asyncio, psutil
        from exec_sandbox import Scheduler

        async def main():
            scheduler = await Scheduler().__aenter__()
            session = await scheduler.session(language="raw")
            running = asyncio.ensure_future(session.exec("sleep 60"))
            await asyncio.sleep(0.5)
            print(*[child.pid for child in psutil.Process().children() if "qemu" in child.name()])
            import sys
            sys.exit(3)

        asyncio.run(main())
    """)
    assert done.returncode == 3, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 1
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.vm
def test_a_forked_child_starts_a_scheduler_of_its_own_and_leaves_its_parents_alone() -> None:
    out = _silent(
        _python("""
            import asyncio, os, sys, warnings
            from exec_sandbox import Scheduler
            # Forking beside threads is what this test is about.
            warnings.filterwarnings("ignore", category=DeprecationWarning)

            async def hello(scheduler, who):
                print((await scheduler.run(f"echo {who}", language="raw")).stdout, end="", flush=True)

            async def childs(inherited):
                try:
                    await inherited.run("true", language="raw")
                except RuntimeError as error:
                    print("forked" in str(error), flush=True)
                async with Scheduler() as scheduler:
                    await hello(scheduler, "child")

            async def main():
                async with Scheduler() as scheduler:
                    session = await scheduler.session(language="raw")
                    await session.exec("kept=1")
                    child = os.fork()
                    if child == 0:
                        asyncio._set_running_loop(None)
                        asyncio.set_event_loop(None)
                        asyncio.new_event_loop().run_until_complete(childs(scheduler))
                        del session
                        os._exit(0)
                    status = await asyncio.to_thread(os.waitpid, child, 0)
                    print(os.waitstatus_to_exitcode(status[1]))
                    print((await session.exec('echo "kept $kept"')).stdout, end="")
                    await hello(scheduler, "parent")
                    await session.close()

            asyncio.run(main())
        """)
    )
    assert out == "True\nchild\n0\nkept 1\nparent\n"


@pytest.mark.vm
async def test_descriptors_threads_and_tasks_stay_as_many_as_they_were(scheduler: Scheduler) -> None:
    ours = psutil.Process()

    async def some() -> tuple[int, int]:
        await asyncio.gather(*[scheduler.run("true", language="raw", memory_mb=128) for _ in range(4)])
        return ours.num_fds(), len(asyncio.all_tasks())

    first = await some()
    assert [await some() for _ in range(2)] == [first] * 2


def test_importing_is_light() -> None:
    out = _silent(
        _python("""
            import sys
            from exec_sandbox import Scheduler
            print([name for name in ("pydantic", "psutil", "aiohttp") if name in sys.modules])
        """)
    )
    assert out == "[]\n"
