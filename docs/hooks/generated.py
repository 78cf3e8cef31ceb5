"""Parts of the reference that are made from the code: `<!-- made from NAME -->` in a page."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from audiovq.config import MOST, ModelConfig
from audiovq.training import recipe


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the parts in their places."""
    return re.sub(r"<!-- made from (\w+) -->", lambda match: PARTS[match[1]](), markdown)


def commands() -> str:
    """Every verb with its arguments and options, as typer writes them."""
    arguments = ("audiovq_cli", "utils", "docs", "--name", "audiovq")
    done = subprocess.run(
        [sys.executable, "-m", "typer", *arguments], capture_output=True, text=True, check=True
    )
    text = re.sub(r"^#", "##", done.stdout, flags=re.M)
    firsts = [
        " ".join(part.split()) for part in re.findall(r"^##.*\n\n((?:.+\n)+)", text, flags=re.M)
    ]

    def whole(match: re.Match[str]) -> str:
        """The first paragraph of a verb, of which lists of verbs have the beginning."""
        return next((first for first in firsts if first.startswith(match[0][:-3])), match[0])

    return re.sub(r"(?<=`: )\S.*\.\.\.$", whole, text, flags=re.M)


def settings() -> str:
    """A table for each section of a recipe."""
    kinds = {"model": ModelConfig, "data": recipe.DataSettings, "loss": recipe.LossSettings}
    kinds["train"] = recipe.TrainSettings
    parts = [f"## `[{name}]`\n\n{_table(kind)}" for name, kind in kinds.items()]
    parts.append(f"## A manifest of `data.train`\n\n{_table(recipe.ManifestSettings)}")
    return "\n\n".join(parts)


def _table(kind: type) -> str:
    module = griffe.load(kind.__module__)
    types = get_type_hints(kind, include_extras=True)
    rows = ["| setting | default | takes | meaning |", "|---|---|---|---|"]
    for field in fields(kind):
        meaning = module[kind.__name__][field.name].docstring.value.replace("\n", " ")
        takes = _takes(types[field.name], field.name)
        cells = (f"`{field.name}`", _default(field), takes, meaning.replace("|", r"\|"))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _default(field: Field[Any]) -> str:
    value = field.default
    if value is MISSING:
        return "must be given"
    value = list(value) if isinstance(value, tuple) else value
    return f"`{value!r}`".replace("'", '"')


def _takes(kind: Any, name: str) -> str:
    """What a setting takes, in words: its type, and the range or the choice beside it."""
    rules = get_args(kind)[1:] if get_origin(kind) is Annotated else ()
    plain = get_args(kind)[0] if rules else kind
    words = {int: "whole number", float: "number", str: "text"}.get(plain, "list")
    for rule in rules:
        if isinstance(rule, recipe.Choice):
            return ", ".join(f'`"{word}"`' for word in rule.words)
        low = f"above {rule.least:g}" if rule.above else f"from {rule.least:g}"
        words += f", {low}" + ("" if rule.most == float("inf") else f" to {rule.most:g}")
    return f"{words}, up to {MOST[name]}" if name in MOST and not rules else words


PARTS: dict[str, Callable[[], str]] = {"commands": commands, "settings": settings}
