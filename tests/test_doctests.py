"""The examples in the docstrings run and print what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import amct_pytorch

PACKAGE = Path(amct_pytorch.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
    assert list(tmp_path.iterdir()) == []
