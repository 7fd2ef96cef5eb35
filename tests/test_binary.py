"""A compiled module that is missing or cannot be loaded: one sentence with the remedy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import amct_pytorch

PACKAGE = Path(amct_pytorch.__file__).parent


@pytest.mark.parametrize(
    ("module", "content", "reason"),
    [
        ("_C", None, "No module named 'amct_pytorch._C'"),
        ("_C", b"", "file too short"),
        ("_host", None, "No module named 'amct_pytorch._host'"),
    ],
    ids=["no _C", "empty _C", "no _host"],
)
def test_remedy(module, content, reason, tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "amct_pytorch", symlinks=True)
    (binary,) = (tmp_path / "amct_pytorch").glob(f"{module}.*.so")
    binary.unlink()
    if content is not None:
        binary.write_bytes(content)
    # An editable install would find the module that is missing in the copy.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "kept = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]; "
        "sys.meta_path[:] = kept; "
        "import amct_pytorch"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False
    )
    sentence = run.stderr.splitlines()[-1]
    assert sentence.startswith("ImportError: the compiled modules of amct_pytorch cannot be loaded")
    assert reason in sentence
    assert "`pip install --no-build-isolation --no-deps --force-reinstall .`" in sentence
    assert run.stdout == ""
