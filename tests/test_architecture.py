"""The imports point one way, and encoding stays light."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEVELS = [
    {"files", "config", "layers", "losses"},
    {"entry", "weights"},
    {"codes", "audio", "network", "quantize", "discriminator", "checkpoint", "recipe", "segment"},
    {"health", "stream", "data"},
    {"model", "pictures", "prepare"},
    {"transcode", "train"},
]
"""Modules of audiovq: each imports only from the sets before its own, and from its own set."""


def imports_of(path: Path) -> set[str]:
    """Modules of audiovq that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("audiovq.")}
    return found


def test_imports_have_no_circle():
    graph = {path.stem: imports_of(path) for path in (ROOT / "audiovq").glob("*.py")}
    done: set[str] = set()
    while len(done) < len(graph):
        free = {name for name, needs in graph.items() if name not in done and needs <= done}
        assert free, f"these import each other: {sorted(set(graph) - done)}"
        done |= free


def test_low_levels_import_only_lower_ones():
    for level, names in enumerate(LEVELS):
        below = set().union(*LEVELS[:level])
        for name in names:
            path = ROOT / "audiovq" / f"{name}.py"
            if path.exists():
                assert imports_of(path) <= below | (names if level else set()), name


def test_the_library_never_imports_the_command_line():
    for path in (ROOT / "audiovq").glob("*.py"):
        assert "audiovq_cli" not in path.read_text(), path


def test_encoding_imports_nothing_heavy():
    heavy = [
        "torchaudio",
        "librosa",
        "scipy",
        "sklearn",
        "matplotlib",
        "lightning_fabric",
        "lhotse",
    ]
    code = (
        "import sys, audiovq, audiovq.transcode, audiovq_cli\n"
        f"print([name for name in {heavy} + ['audiovq.train', 'audiovq.losses'] "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
