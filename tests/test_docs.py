"""What the pages say is there: links, paths, names, options and settings."""

import ast
import importlib
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from audiovq.lm.recipe import Recipe as LanguageModelRecipe
from audiovq.quality.results import TABLE
from audiovq.training.recipe import Recipe
from audiovq.units.report import ROWS
from audiovq_cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "recipes").glob("*/*.md"),
    ]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
COMMANDS = typer.main.get_command(app)
GONE = re.compile(r"audiovq\.units\.merge_repeats")
"""What the changelog says is removed."""
OTHERS = {
    "loss.name",
    "model.decode",
    "model.coarse_units",
    "model.stream",
    "model.safetensors",
    "train.jsonl",
    "train.npy",
    "train.tsv",
}
"""What looks like a setting and is none."""
FOLDERS = ("audiovq", "cli", "tests", "docs", "benchmarks", "recipes", "examples", ".ci")


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)


def commands(page: str) -> list[list[str]]:
    """The words of every `audiovq ...` in blocks and between backticks, lines joined."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$|((?:^ {4}[^\n]*\n)+)", text, flags=re.M | re.S)
    lines = "\n".join("".join(block) for block in blocks).replace("\\\n", " ").splitlines()
    quoted = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]
    found = []
    for line in [*lines, *quoted]:
        for part in re.split(r" [|;] | && |^\s+", line):
            if part.startswith("audiovq "):
                found.append(shlex.split(part, comments=True)[1:])
    return found


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(str(page.relative_to(ROOT))), flags=re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", NAMES)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert ROOT in target.resolve().parents, f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.resolve()), f"{page}: {link}"


@pytest.mark.parametrize("page", NAMES)
def test_every_path_and_name_in_backticks_is_there(page):
    for code in re.findall(r"`([^`\s]+)`", prose(page)):
        path, _, name = code.partition("::")
        if path.split("/")[0] in FOLDERS and "/" in path and path.isascii():
            assert (ROOT / path).exists(), f"{page}: {code}"
        if name:
            tree = ast.parse((ROOT / path).read_text())
            there = {getattr(node, "name", None) for node in tree.body}
            for node in tree.body:
                targets = node.targets if isinstance(node, ast.Assign) else []
                targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
                there |= {target.id for target in targets if isinstance(target, ast.Name)}
            assert name in there, f"{page}: {code}"


def test_commands_are_found_in_blocks_and_between_backticks():
    found = {tuple(words[:2]) for page in NAMES for words in commands(page)}
    assert {("decode", "tokens"), ("export", "runs/mine"), ("units", "merge")} <= found


@pytest.mark.parametrize("page", NAMES)
def test_every_command_has_its_options(page):
    for words in commands(page):
        verb: Any = COMMANDS
        rest = iter(words)
        while hasattr(verb, "commands") and (word := next(rest, "VERB")) != "VERB":
            if word.startswith("-"):
                break
            assert word in verb.commands, f"{page}: audiovq {shlex.join(words)}"
            verb = verb.commands[word]
        known = {name for param in verb.params for name in param.opts} | {"--help", "-h"}
        known |= {"--install-completion", "--show-completion"}
        for word in rest:
            if re.match(r"--?[a-z]", word):
                assert word in known, f"{page}: audiovq {shlex.join(words)}"


@pytest.mark.parametrize("page", NAMES)
def test_every_setting_is_one_of_the_recipe(page):
    known = {
        f"{section.name}.{setting.name}"
        for kind in (Recipe, LanguageModelRecipe)
        for section in fields(kind)
        if section.name != "card"
        for setting in fields(section.default_factory)
    }
    text = (ROOT / page).read_text()
    for setting in re.findall(
        r"(?:`|--set[ \n]+)((?:model|data|loss|train|stage|sizes)\.[a-z_]+)", text
    ):
        assert setting in known | OTHERS, f"{page}: {setting}"


@pytest.mark.parametrize("page", NAMES)
def test_every_import_in_a_page_works(page):
    for block in re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S):
        for node in ast.parse(block).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(ast.unparse(node), {})


@pytest.mark.parametrize("page", NAMES)
def test_every_dotted_name_is_there(page):
    import audiovq

    for name in re.findall(r"`(audiovq(?:\.\w+)+|AudioVQ\.\w+)[`(]", prose(page)):
        if GONE.match(name):
            continue
        found = audiovq.AudioVQ if name.startswith("AudioVQ") else audiovq
        for at, part in enumerate(parts := name.split(".")[1:], 1):
            if not hasattr(found, part):
                importlib.import_module(".".join(["audiovq", *parts[:at]]))
            found = getattr(found, part)


def test_every_measure_has_its_row():
    page = (ROOT / "docs" / "reference" / "measures.md").read_text()
    of_sound = page.partition("## Of sound")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*) \| ", of_sound, flags=re.M)
    named: set[str] = set()
    for row in rows:
        first, *others = re.findall(r"`(\w+)`", row)
        named |= {first, *(first.rpartition("_")[0] + other for other in others)}
    assert named == set(TABLE)


def test_every_measure_of_units_is_defined():
    page = (ROOT / "docs" / "reference" / "measures.md").read_text()
    said = page.partition("## Of units")[2].replace("\\|", "|").lower()
    for row in ROWS:
        words = re.sub(r", (bit|all frames|repeats merged)$", "", row.label.lower())
        assert words.removeprefix("boundary ") in said, row.label


def test_the_page_on_language_models_runs(tiny_model, tiny_folder, tmp_path, monkeypatch):
    """All its Python, block after block, on a language model of the examples."""
    pytest.importorskip("transformers")
    from lm_tiny import prepared, tiny_recipe

    from audiovq.lm.train import train

    data = prepared(tiny_model, tmp_path / "made")
    for name in ("units", "acoustic"):
        train(tiny_recipe(name, data, tiny_folder, steps=1), tmp_path / "runs" / "lm")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "lm").symlink_to(data)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setattr("audiovq.model.DEFAULT_FOLDER", tiny_folder)
    monkeypatch.setattr("audiovq.lm.model.DEFAULT_FOLDER", tmp_path / "runs" / "lm")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "how_to" / "language_models.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert len(blocks) > 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "language_models.md", "exec"), names)
    assert float(names["loss"].detach()) > 0
    assert [row["name"] for row in names["rows"]()] == [item.name for item in names["data"]]
