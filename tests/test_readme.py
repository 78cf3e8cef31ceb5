"""Every block of the README, and of the page on Python, runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", README, flags=re.S)
PAGES = README + (ROOT / "docs" / "python.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", PAGES, flags=re.S)
TOO_LONG = ("pip install", "pytest", "audiovq train")
"""Lines that start so are run elsewhere: by the continuous integration, and by test_train.py."""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like the checkout, for blocks to write into."""
    for name in ("examples", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    return tmp_path


def test_there_are_blocks_to_run():
    assert len(SHELL) >= 3
    assert len(PYTHON) >= 1


def test_the_shell_blocks_run_one_after_the_other(checkout):
    for block in SHELL:
        lines = [line for line in block.splitlines() if not line.startswith(TOO_LONG)]
        script = "set -e\n" + "\n".join(lines)
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("block", PYTHON)
def test_the_python_blocks_run(checkout, block):
    (checkout / "block.py").write_text(block)  # a file: processes that it spawns import it
    done = subprocess.run([sys.executable, "block.py"], capture_output=True, text=True)
    assert done.returncode == 0, f"{block}\n{done.stderr}"
