"""The Python blocks of README.md and of the pages in docs/ run, in the order they stand in."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}

    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page.name}, Python block {number}", "exec"), namespace)

    assert len(blocks) >= 2
