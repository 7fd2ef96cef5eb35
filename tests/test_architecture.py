"""The shape of the sources: imports go downward, and the core knows nothing of torch."""

import ast
import graphlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "amct_pytorch"
# From the bottom up; a module imports from its own layer and from those before it.
LAYERS = [
    [
        "_binary",
        "_host",
        "capability",
        "checkpoint",
        "files",
        "float32",
        "logging",
        "suggest",
        "version",
    ],
    ["ops"],
    ["calibrators"],
    ["config", "graph", "layers", "records"],
    ["export", "nn", "transforms"],
    ["steps"],
    ["search"],
    ["report"],
    ["ptq", "auto_calibration", "qat", "convert", "kv_cache"],
    ["common"],  # import paths that users know
    [PACKAGE],  # the public names
]
LAYER_OF = {part: height for height, parts in enumerate(LAYERS) for part in parts}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def imported(module: str) -> set[str]:
    """The modules of the package that `module` imports, wherever in its text."""
    path = SOURCES[module]
    parents = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:  # a module of the package `source`, or a name in it
                name = f"{source}.{alias.name}"
                is_module = name in SOURCES or name == f"{PACKAGE}._host"
                found.add(name if is_module else source)
    return {name for name in found if name.split(".")[0] == PACKAGE and name != module}


def part_of(module: str) -> str:
    """The file or folder of the package that holds `module`."""
    return [*module.split("."), PACKAGE][1]


def test_every_part_has_a_layer():
    parts = {part_of(module) for module in SOURCES}
    assert parts - LAYER_OF.keys() == set(), "add them to LAYERS"
    assert LAYER_OF.keys() - parts == {"_host"}, "no longer there: take them out of LAYERS"


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_downward(module):
    height = LAYER_OF[part_of(module)]
    upward = {name for name in imported(module) if LAYER_OF[part_of(name)] > height}
    assert upward == set()


def test_no_module_imports_itself_over_others():
    edges = {module: imported(module) for module in SOURCES}
    graphlib.TopologicalSorter(edges).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize("path", ["quant_math.h", "host/packing.h", "host/host.cpp"])
def test_core_includes_no_torch(path):
    includes = re.findall(r'#include [<"](.*?)[>"]', (ROOT / "csrc" / path).read_text())
    assert includes
    assert [name for name in includes if re.search("torch|ATen|c10", name)] == []


def test_core_includes_the_standard_library_only():
    includes = re.findall(r"#include (.*)", (ROOT / "csrc" / "quant_math.h").read_text())
    assert includes == ["<cmath>", "<cstdint>"]


# ---- words that mean nothing to a reader of the sources ----

PLACES = re.compile(r"(?<![\w.])/(?:home|root|work|Users|mnt)/\w")  # of one machine
TASKS = re.compile(r"\b(?:issue|session|task|ticket)s? #?\d", re.IGNORECASE)


@pytest.mark.parametrize("pattern", [PLACES, TASKS], ids=["places", "tasks"])
def test_sources_speak_of_themselves(pattern):
    run = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip("not a clone: the list of sources comes from git")
    names = [name for name in run.stdout.splitlines() if (ROOT / name).is_file()]
    found = {n: pattern.findall((ROOT / n).read_text(errors="ignore")) for n in names}
    assert {name: words for name, words in found.items() if words} == {}
