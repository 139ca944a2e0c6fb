"""Sessions: state, the table of outcomes, files, and how one ends."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest

from exec_sandbox import (
    ExecutionResult,
    OutputLimitError,
    Scheduler,
    Session,
    SessionClosedError,
    VmPermanentError,
)

# What happens, the exit code, and whether the interpreter's state is kept.
_OUTCOMES: dict[str, list[tuple[str, int, bool]]] = {
    "python": [
        ("1 / 0", 1, True),
        ("def", 1, True),
        ("import sys; sys.exit(5)", 5, True),
        ("import os; os._exit(6)", 6, False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143, False),
    ],
    "javascript": [
        ("throw new Error('x')", 1, True),
        ("const = ;", 1, True),
        ("process.exitCode = 5", 5, True),
        ("process.exit(6)", 6, False),
        ("Promise.reject(new Error('unhandled'))", 1, True),
        ("process.kill(process.pid, 'SIGTERM')", 143, False),
    ],
    "raw": [
        ("false", 1, True),
        ("if", 2, True),
        ("exit 6", 6, False),
        ("kill -TERM $$", 143, False),
    ],
}

_KEEP = {"python": "kept = 1", "javascript": "globalThis.kept = 1", "raw": "kept=1"}
_LOOK = {
    "python": "print('kept' in globals())",
    "javascript": "console.log(globalThis.kept === 1 ? 'True' : 'False')",
    "raw": '[ -n "$kept" ] && echo True || echo False',
}


@pytest.mark.vm
@pytest.mark.parametrize("language", ["python", "javascript", "raw"])
async def test_the_table_of_outcomes(scheduler: Scheduler, language: str) -> None:
    async with await scheduler.session(language=language) as session:
        for code, exit_code, is_kept in _OUTCOMES[language]:
            await session.exec(_KEEP[language])
            result = await session.exec(code)
            assert result.exit_code == exit_code, (code, result)
            assert not session.closed
            if is_kept or language != "raw":
                assert (await session.exec(_LOOK[language])).stdout == f"{is_kept}\n", code
        sleep = {"python": "import time; print('part'); time.sleep(60)", "raw": "echo part; sleep 60"}
        slow = await session.exec(sleep.get(language, "console.log('part'); await Bun.sleep(60000)"), timeout_seconds=1)
        assert (slow.exit_code, slow.stdout) == (-1, "part\n")
        assert "timeout" in slow.stderr.lower()
        assert (await session.exec(_LOOK[language])).stdout == "False\n"
        assert session.exec_count > len(_OUTCOMES[language])


@pytest.mark.vm
async def test_too_much_output_is_an_error_and_all_of_it_was_streamed(scheduler: Scheduler) -> None:
    async with await scheduler.session(language="python") as session:
        whole = await session.exec("kept = 7; print('x' * 999_999)")
        assert len(whole.stdout) == 1_000_000
        heard: list[str] = []
        with pytest.raises(OutputLimitError) as raised:
            await session.exec("print('y' * 1_000_000)", on_stdout=heard.append)
        assert raised.value.context["vm_id"] == session.vm_id
        assert len("".join(heard)) >= 1_000_000
        with pytest.raises(OutputLimitError):
            await session.exec("import sys; sys.stderr.write('z' * 100_001)")
        assert (await session.exec("print(kept)")).stdout == "7\n"


@pytest.mark.vm
async def test_137_closes_a_session_and_every_call_says_so(scheduler: Scheduler) -> None:
    session = await scheduler.session(language="python")
    result = await session.exec("import os, signal; print('last', flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    assert (result.exit_code, result.stdout) == (137, "last\n")
    assert session.closed
    calls: list[Any] = [
        session.exec("print(1)"),
        session.write_file("a", b""),
        session.read_file("a", destination=io.BytesIO()),
        session.list_files(),
    ]
    for call in calls:
        with pytest.raises(SessionClosedError, match="137"):
            await call
    await session.close()
    await session.close()


@pytest.mark.vm
async def test_a_cancelled_call_closes_its_session(scheduler: Scheduler) -> None:
    session = await scheduler.session(language="raw")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(session.exec("sleep 60"), 0.5)
    with pytest.raises(SessionClosedError):
        await session.exec("true")
    assert session.closed
    await session.close()


@pytest.mark.vm
async def test_executions_of_one_session_follow_each_other(scheduler: Scheduler) -> None:
    async with await scheduler.session(language="python") as session:
        await session.exec("seen = []")
        results = await asyncio.gather(*[session.exec(f"seen.append({n}); print(seen)") for n in range(8)])
        assert [result.stdout for result in results] == [f"{list(range(n + 1))}\n" for n in range(8)]
        assert session.exec_count == 9
        assert isinstance(results[0], ExecutionResult)
        assert (results[0].timing.setup_ms, results[0].timing.boot_ms) == (0, 0)
        assert results[0].timing.teardown_ms is None


@pytest.mark.vm
async def test_files_go_in_and_out_byte_for_byte(scheduler: Scheduler, tmp_path: Path) -> None:
    data = os.urandom(3_000_001)
    (tmp_path / "in").write_bytes(data)
    async with await scheduler.session(language="raw") as session:
        await _round_trips(session, data, tmp_path)
        await session.write_file("bin/tool", b"#!/bin/sh\necho tool\n", make_executable=True)
        assert (await session.exec("bin/tool")).stdout == "tool\n"
        await session.exec("chmod 600 b; mkdir empty")
        files = await session.list_files()
        assert [(file.name, file.is_dir, file.size) for file in files] == [
            ("a", True, 0),
            ("b", False, len(data)),
            ("bin", True, 0),
            ("c", False, len(data)),
            ("empty", True, 0),
        ]
        assert await session.list_files("empty") == []
        await _failures(session, tmp_path)
        assert not session.closed


async def _round_trips(session: Session, data: bytes, tmp_path: Path) -> None:
    digest = hashlib.sha256(data).hexdigest()
    await session.write_file("a/nested/file", data)
    await session.write_file("b", tmp_path / "in")
    await session.write_file("c", io.BytesIO(data))
    result = await session.exec("sha256sum a/nested/file b c | cut -d' ' -f1 | uniq -c")
    assert result.stdout.split() == ["3", digest]
    into = io.BytesIO()
    out = tmp_path / "out"
    out.write_bytes(b"old")
    # As neither a temporary file nor the mask of the process would have it.
    out.chmod(0o602)
    link = tmp_path / "link"
    link.symlink_to(out)
    await session.read_file("b", destination=into)
    await session.read_file("a/nested/file", destination=link)
    assert into.getvalue() == out.read_bytes() == data
    assert link.is_symlink()
    assert out.stat().st_mode & 0o777 == 0o602
    with (tmp_path / "raw").open("wb", buffering=0) as unbuffered:
        await session.read_file("c", destination=unbuffered)
    assert (tmp_path / "raw").read_bytes() == data
    await session.read_file("c", destination=Path("/dev/null"))
    assert Path("/dev/null").is_char_device()


class _Failing(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise KeyError("mine")

    def write(self, data: Any) -> int:
        raise KeyError("mine too")


async def _failures(session: Session, tmp_path: Path) -> None:
    with pytest.raises(VmPermanentError) as raised:
        await session.read_file("nosuch", destination=tmp_path / "nosuch")
    assert raised.value.context["kind"] == "file_not_found"
    assert not (tmp_path / "nosuch").exists()
    with pytest.raises(FileNotFoundError) as missing:
        await session.write_file("x", tmp_path / "missing")
    assert missing.value.filename == str(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        await session.write_file("x", tmp_path)
    with pytest.raises(IsADirectoryError):
        await session.read_file("b", destination=tmp_path)
    with pytest.raises(FileNotFoundError):
        await session.read_file("b", destination=tmp_path / "no" / "dir")
    with pytest.raises(KeyError, match="mine"):
        await session.write_file("x", _Failing())  # type: ignore[arg-type]  # no more than is needed
    with pytest.raises(KeyError, match="mine too"):
        await session.read_file("b", destination=_Failing())  # type: ignore[arg-type]  # no more than is needed
    with pytest.raises(TypeError, match="binary mode"):
        await session.write_file("x", io.StringIO("text"))  # type: ignore[arg-type]
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
    assert "x" not in [file.name for file in await session.list_files()]
