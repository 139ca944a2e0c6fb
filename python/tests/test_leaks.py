"""The watch for leaks: each rule can fail, and none does without reason."""

from __future__ import annotations

from pathlib import Path

import pytest

# What a test does, and what is said of it. The process is last: it is left for all that come after it.
LEAKS = {
    "a_task": ("global task; task = asyncio.ensure_future(asyncio.sleep(60))", "*tasks were left*"),
    "a_descriptor": ("global file; file = open(__file__)", "*descriptors were left open*"),
    "an_exception": (
        "asyncio.get_running_loop().create_future().set_exception(OSError())",
        "*exception was never retrieved*",
    ),
    "a_coroutine": ("asyncio.sleep(0)", "*was never awaited*"),
    "a_process": ("global process; process = subprocess.Popen(['sleep', '60'])", "*processes were left*"),
}


@pytest.fixture
def watched(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    pytester.makeconftest("""
        import sys

        pytest_plugins = ["leaks"]

        def pytest_unconfigure():
            if process := getattr(sys.modules.get("test_it"), "process", None):
                process.kill()
                process.wait()
    """)
    pytester.makeini("""
        [pytest]
        asyncio_mode = auto
        asyncio_default_fixture_loop_scope = function
        asyncio_debug = true
        filterwarnings = error
    """)
    return pytester


def test_a_test_that_leaves_something_fails(watched: pytest.Pytester) -> None:
    tests = "\n".join(f"async def test_{name}():\n    {body}\n" for name, (body, _) in LEAKS.items())
    watched.makepyfile(test_it=f"import asyncio, subprocess\n\n{tests}")
    outcome = watched.runpytest_subprocess()
    assert outcome.ret == pytest.ExitCode.TESTS_FAILED
    lines = outcome.stdout.lines
    summary = lines[next(n for n, line in enumerate(lines) if "short test summary" in line) :]
    assert [name for name in LEAKS if not any(f"test_{name}" in line for line in summary)] == []
    for _, complaint in LEAKS.values():
        outcome.stdout.fnmatch_lines_random([complaint])


def test_a_test_that_leaves_nothing_passes(watched: pytest.Pytester) -> None:
    watched.makepyfile("""
        import asyncio, subprocess

        def test_without_a_loop():
            open(__file__).close()
            subprocess.run(["true"], check=True)

        async def test_with_one():
            await asyncio.gather(*(asyncio.sleep(0) for _ in range(3)))
    """)
    watched.runpytest_subprocess().assert_outcomes(passed=2)
