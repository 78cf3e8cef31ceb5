"""The imports point one way, and encoding stays light."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from audiovq.moved import MOVED

ROOT = Path(__file__).parent.parent
WINGS = {"training", "quality", "units", "exploration", "lm", "corpus", "demo"}
"""Folders of audiovq. They import the core, the flat modules, and never each other."""
CORE = [
    {
        "coarse",
        "files",
        "flatten",
        "config",
        "distortions",
        "hearing",
        "hardware",
        "interrupt",
        "levenshtein",
        "segment",
        "moved",
        "rangecoder",
    },
    {"layers", "audio", "entry", "weights", "hub", "runs", "settings", "entropy", "tokens"},
    {"avq", "codes", "source", "quantize", "health", "edit"},
    {"network", "pictures"},
    {"stream"},
    {"model"},
    {"transcode", "live", "onnx"},
]
"""The flat modules: each imports only from the sets before its own, and from its own set."""

FILE_LINES = 400
"""Most lines of a file of the training wing."""
FUNCTION_LINES = 60
"""Most lines of a function in these wings, without its docstring."""


def modules() -> dict[str, Path]:
    """Every module of audiovq by its name without `audiovq.`, packages by theirs."""
    found = {}
    for path in (ROOT / "audiovq").rglob("*.py"):
        parts = path.relative_to(ROOT / "audiovq").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path) -> set[str]:
    """Modules of audiovq that a file imports, at any depth, without `audiovq.`."""
    known, found = set(modules()), set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level or "audiovq" not in path.parts[-2:-1], f"relative in {path}"
            base = node.module or ""
            # `from audiovq import x` names a module, or something of the package.
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.partition(".")[2] for name in names if name.startswith("audiovq.")}
    return found & known - {""}


GRAPH = {name: imports_of(path) - {name} for name, path in modules().items()}


def test_every_module_has_its_place():
    flat = {name for name in GRAPH if "." not in name and name} - WINGS
    assert flat == set().union(*CORE)
    assert {name.partition(".")[0] for name in GRAPH if "." in name} == WINGS


def test_wings_import_the_core_and_never_each_other():
    flat = set().union(*CORE)
    for name, needs in GRAPH.items():
        wing = name.partition(".")[0]
        if wing in WINGS:
            strangers = {need for need in needs if need.partition(".")[0] not in flat | {wing}}
            assert not strangers, f"{name} imports {strangers}"


def test_the_core_imports_only_what_stands_below():
    for level, names in enumerate(CORE):
        below = set().union(*CORE[: level + 1])
        for name in names:
            assert GRAPH[name] <= below, f"{name} imports {GRAPH[name] - below}"


def test_imports_have_no_circle():
    done: set[str] = set()
    while len(done) < len(GRAPH):
        free = {name for name, needs in GRAPH.items() if name not in done and needs <= done}
        assert free, f"these import each other: {sorted(set(GRAPH) - done)}"
        done |= free


@pytest.mark.parametrize("wing", ["training", "quality", "units"])
def test_functions_of_the_wings_are_short(wing):
    long = {
        f"{path.name} {node.name}": size
        for path in (ROOT / "audiovq" / wing).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (size := code_lines(node)) > FUNCTION_LINES
    }
    assert not long


def test_files_of_the_training_wing_are_short():
    files = (ROOT / "audiovq" / "training").glob("*.py")
    assert not [path.name for path in files if path.read_text().count("\n") > FILE_LINES]


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring, which may say as much as its users need."""
    first = function.body[0]
    is_doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    doc = (first.end_lineno or 0) - first.lineno + 1 if is_doc else 0
    return (function.end_lineno or 0) - function.lineno + 1 - doc


def levels() -> dict[str, int]:
    """The level of each module of the core: one above the highest that it imports, or 0."""
    flat = {name for name in GRAPH if name and name.partition(".")[0] not in WINGS}
    found: dict[str, int] = {}
    while len(found) < len(flat):
        ready = [name for name in flat - set(found) if GRAPH[name] & flat <= set(found)]
        assert ready, f"these import each other: {sorted(flat - set(found))}"
        heights = {n: max((found[need] + 1 for need in GRAPH[n] & flat), default=0) for n in ready}
        found |= heights
    return found


def graph() -> dict[str, set[str]]:
    """What CONTRIBUTING.md draws: core modules by wing that imports them, and by level."""
    of_level = levels()
    lines: dict[str, set[str]] = {wing: set() for wing in WINGS}
    for name, needs in GRAPH.items():
        if (wing := name.partition(".")[0]) in WINGS:
            lines[wing] |= needs & set(of_level)
    for name, level in of_level.items():
        lines.setdefault(f"level {level}", set()).add(name)
    return lines


def drawn(page: str) -> dict[str, set[str]]:
    """The same, read from a page: lines `name -> module module ...`."""
    lines = re.findall(r"^([a-z]+(?: \d+)?) +-> (.*)$", page, flags=re.M)
    assert len(lines) == len(dict(lines)), "a line stands twice"
    return {name: set(modules.split()) for name, modules in lines}


def drawing() -> str:
    """The lines of `graph`, wings first, then the core from the top."""
    lines = graph()
    names = [*sorted(WINGS), *sorted(set(lines) - WINGS, reverse=True)]
    return "\n".join(f"{name:<11} -> {' '.join(sorted(lines[name]))}" for name in names)


def test_the_drawing_in_contributing_is_the_graph():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    assert drawn(page) == graph(), f"paste this into CONTRIBUTING.md:\n{drawing()}"


def test_a_drawing_is_read_back():
    assert drawn(drawing()) == graph()


def test_the_tests_of_imports_see_every_way_to_import(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "import audiovq.codes\nfrom audiovq import model, FileRefused\n"
        "def f():\n    from audiovq.units import measures\n    from audiovq.files import x\n"
    )
    assert imports_of(path) == {"codes", "model", "units", "units.measures", "files"}


def test_the_library_never_imports_the_command_line():
    for path in modules().values():
        assert "audiovq_cli" not in path.read_text(), path


@pytest.mark.parametrize("old", MOVED)
def test_old_names_lead_to_the_new_modules(old):
    try:
        new = importlib.import_module(MOVED[old])
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    spec = new.__spec__
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=MOVED[old]):
        assert importlib.import_module(old) is new
    assert new.__spec__ is spec
    assert new.__name__ == MOVED[old]


def test_units_has_the_names_of_the_module_that_it_was():
    from audiovq import units
    from audiovq.units import measures

    assert units.evaluate is measures.evaluate
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = units.nothing


def test_encoding_imports_nothing_heavy():
    heavy = [
        "torchaudio",
        "librosa",
        "scipy",
        "sklearn",
        "matplotlib",
        "lightning_fabric",
        "lhotse",
        "transformers",
    ]
    code = (
        "import sys, audiovq, audiovq.transcode, audiovq_cli\n"
        f"print([name for name in {heavy} + ['audiovq.training', 'audiovq.quality', 'audiovq.lm'] "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


if __name__ == "__main__":
    print(drawing())
