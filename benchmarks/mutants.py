"""Which small faults the tests do not notice: a sample of mutants of a module, by mutmut.

    python benchmarks/mutants.py quantize segment --ending 3

changes the module in one place at a time (a constant, an operator, an argument, a word) and runs
its test file on each; a mutant that passes survives. A tenth of the mutants is tried: those whose
number ends in a digit, or a hundredth, with two. It takes minutes a module on an idle machine, and
for `training/loop`, whose tests train, minutes a mutant. Needs `pip install mutmut`.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = {
    "quantize": ["test_quantize.py"],
    "stream": ["test_stream.py"],
    "avq": ["test_avq.py", "test_codes.py"],
    "tokens": ["test_tokens.py", "test_avq.py", "test_codes.py"],
    "codes": ["test_codes.py"],
    "segment": ["test_segment.py"],
    "training/loop": ["test_train.py"],
    "training/data": ["test_data.py"],
    "units/information": ["test_units.py"],
    "units/boundaries": ["test_units.py"],
    "units/measures": ["test_units.py"],
}
"""The test files of a module of audiovq; others may notice more."""
IGNORED = [r"raise \w+", r"logger\.\w+", r"assert "]
"""Lines that are not changed: words of errors and of logs."""
LEFT_OUT = (
    "not ranks and not poor_machines and not default_model and not long_recording "
    "and not interpreter and not graphs and not worker_too"
)
"""Tests, in pytest's words, that take longer than the rest of their file."""
COPIED = ("audiovq", "tests", "examples", "recipes", "README.md")


def settings(module: str) -> str:
    """Of mutmut, for pyproject.toml."""
    tests = [f"tests/{name}" for name in TESTS[module]]
    return f"""
[tool.mutmut]
source_paths = ["audiovq"]
only_mutate = ["audiovq/{module}.py"]
also_copy = ["examples", "recipes", "README.md"]
do_not_mutate_patterns = {IGNORED}
pytest_add_cli_args = ["-x", "-q", "-p", "no:cacheprovider", "-k", "{LEFT_OUT}"]
pytest_add_cli_args_test_selection = {tests}
track_dependencies = false
use_git_change_detection = false
"""


def survivors(module: str, ending: str) -> tuple[int, list[str]]:
    """How many mutants were tried, and the differences of those that live."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            source, copy = ROOT / name, Path(folder) / name
            shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
        project = (ROOT / "pyproject.toml").read_text() + settings(module)
        (Path(folder) / "pyproject.toml").write_text(project)

        def mutmut(*words: str) -> str:
            command = [sys.executable, "-m", "mutmut", *words]
            done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"mutmut {' '.join(words)} failed:\n{done.stdout[-4000:]}")
            return done.stdout

        pattern = f"audiovq.{module.replace('/', '.')}.*__mutmut_*{ending}"
        print(f"{module} ...", file=sys.stderr)
        results = mutmut("run", "--max-children", "1", pattern).rpartition("Mutant results")[2]
        marks = [line.split() for line in results.splitlines() if "__mutmut_" in line]
        living = [name for mark, name in marks if mark in ("🙁", "🫥")]
        return len(marks), [mutmut("show", name) for name in living]


def main() -> None:
    """Print the table, and with it each mutant that lives."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), help="as " + ", ".join(TESTS))
    parser.add_argument("--ending", default="3", help="last digits of the mutants tried")
    arguments = parser.parse_args()
    for module in arguments.modules:
        if module not in TESTS:
            parser.error(f"{module} is not one of {', '.join(TESTS)}")
        n, differences = survivors(module, arguments.ending)
        print(f"{module}: {len(differences)} of {n} survive", flush=True)
        for difference in differences:
            print(difference, flush=True)


if __name__ == "__main__":
    main()
