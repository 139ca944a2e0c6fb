"""The documentation: each ```python block of README.md and docs/python.md is a whole program, and is run.

A ```text block right after one is what the program writes to standard output, to the letter.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/python.md"]

_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\s*^```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL)
# What no example causes, even where it is only logged.
_COMPLAINTS = ("Traceback", "Warning", "never retrieved", "was destroyed but it is pending")


class Example(NamedTuple):
    """A program and what it writes, if that is said."""

    name: str
    code: str
    output: str | None


def examples_of(page: str, text: str) -> list[Example]:
    """The examples of a page, each named after the line where it begins."""
    return [
        Example(f"{page}:{text.count(chr(10), 0, found.start('code')) + 1}", found["code"], found["output"])
        for found in _BLOCK.finditer(text)
    ]


EXAMPLES = [example for page in PAGES for example in examples_of(page, (ROOT / page).read_text(encoding="utf-8"))]


@pytest.mark.vm
@pytest.mark.parametrize("example", [pytest.param(example, id=example.name) for example in EXAMPLES])
def test_an_example_does_what_the_page_says(example: Example, tmp_path: Path) -> None:
    program = tmp_path / "example.py"
    # An error names the line of the page.
    program.write_text("\n" * (int(example.name.split(":")[1]) - 1) + example.code, encoding="utf-8")
    command = [sys.executable, "-X", "dev", "-W", "error", str(program)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not [it for it in _COMPLAINTS if it in done.stderr], done.stderr
    if example.output is not None:
        assert done.stdout == example.output


def test_docs_have_examples_and_none_is_overlooked() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        # However its fence is indented or named.
        fences = re.findall(r"^\s*```+ *(?:python|py|python3)\b", text, re.MULTILINE | re.IGNORECASE)
        assert len(examples_of(page, text)) == len(fences), page
    assert len(EXAMPLES) >= 10


def test_a_block_is_found_with_its_line_and_its_output() -> None:
    text = "# A\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n```python\npass\n```\n\nWords.\n\n```text\n2\n```\n"
    assert examples_of("a.md", text) == [Example("a.md:4", "print(1)\n", "1\n"), Example("a.md:12", "pass\n", None)]
