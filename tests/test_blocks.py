"""Every block of the README and of the documentation runs, page by page, as it stands.

Blocks indented by four blanks are the commands that printed a figure, on recordings that are not in
the checkout; test_docs.py looks at their options. All others, ```sh and ```python, are run here.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from tiny import EXAMPLES
from typer.testing import CliRunner

import audiovq_cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs/index.md", *sorted((ROOT / "docs").glob("*/**/*.md"))]
ELSEWHERE = {
    "docs/how_to/measure_units.md",
    "docs/how_to/explore_codes.md",
    "docs/how_to/language_models.md",
}
"""Pages that test_cli_units.py runs, on tokens with phone labels, test_exploration_pages.py, with a
small model, and test_docs.py, after a training."""
ALIKE = {"", "text", "json", "toml"}
"""Blocks that are nothing to run."""
NOT_HERE = ("pip install", "pytest", "audiovq --install-completion", "audiovq --show-completion")
"""Lines that start so change the machine, or are what runs now."""
SMALL = {
    "model": ("channels=[8,8,8]", "encoder_blocks=[1,1,1]", "codebook_size=16"),
    "train": ("steps=3", "autoencoder_steps=1", "adversarial_from=3", "threads=1"),
    "data": ("workers=0", "batch_size=2"),
}
"""What is added to trainings, so that they last seconds."""
SECONDS = 2.5
"""What blocks hear of each recording."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Kind and text of every block between fences."""
    return re.findall(r"^```(\w*)[^\n]*\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


RUN = {
    str(page.relative_to(ROOT)): found
    for page in PAGES
    if (found := [block for block in blocks(page) if block[0] in ("sh", "python")])
}


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder that looks like the checkout, with recordings, for blocks to write into."""
    for name in ("recipes", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    shortest = sorted(EXAMPLES, key=lambda path: path.stat().st_size)[:2]
    named = [path for path in EXAMPLES if path.stem.endswith("0870")]
    folders = {"examples": named + shortest, "recordings": shortest, "wavs": shortest}
    for name, paths in (folders | {"more": named}).items():
        (tmp_path / name).mkdir()
        for path in paths:
            samples, rate = soundfile.read(path, dtype="int16")
            soundfile.write(tmp_path / name / path.name, samples[: int(SECONDS * rate)], rate)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    n_threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield tmp_path
    torch.set_num_threads(n_threads)
    torch.set_rng_state(state)


def run_shell(block: str) -> None:
    """Run the lines of a block: alone standing `audiovq ...` here, all others by bash."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or line.startswith(NOT_HERE):
            continue
        if words[:2] == ["audiovq", "train"] and "--resume" not in words:
            sets = [f"--set={part}.{value}" for part, values in SMALL.items() for value in values]
            words = [*words[:3], *sets, *words[3:]]
        if words[0] == "audiovq" and not {"|", ">", "<", "&&"} & set(words):
            done = CliRunner().invoke(audiovq_cli.app, words[1:])
            assert done.exit_code == 0, f"{line}\n{done.output}"
        else:
            call = ["bash", "-o", "pipefail", "-ec", line]
            ended = subprocess.run(call, capture_output=True, text=True)
            assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}"


def run_python(block: str, scope: dict[str, object], page: str) -> None:
    """Run a block after those before it; one that starts processes as a file of its own."""
    if "__main__" not in block:
        exec(compile(block, page, "exec"), scope)
        return
    Path("block.py").write_text(block)
    done = subprocess.run([sys.executable, "block.py"], capture_output=True, text=True)
    assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("page", sorted(set(RUN) - ELSEWHERE))
def test_the_blocks_of_a_page_run_one_after_the_other(page, checkout):
    scope: dict[str, object] = {"__name__": "page"}
    for kind, block in RUN[page]:
        if kind == "sh":
            run_shell(block)
        else:
            run_python(block, scope, page)


def test_no_block_is_of_an_unknown_kind():
    kinds = {kind for page in PAGES for kind, _ in blocks(page)}
    assert kinds <= {"sh", "python", *ALIKE}


def test_there_are_blocks_to_run():
    assert {"README.md", "docs/reference/python.md", *ELSEWHERE} <= set(RUN)
    assert sum(page.startswith("docs/tutorials/") for page in RUN) == 4


def test_a_block_that_fails_is_found(checkout):
    with pytest.raises(AssertionError):
        run_shell("audiovq decode nothing.npy")
    with pytest.raises(AssertionError):
        run_shell("false | cat")
