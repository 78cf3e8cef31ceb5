"""Settings in TOML files read into dataclasses, each checked where it stands, with clear errors."""

import copy
import difflib
import json
import math
import reprlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from audiovq.files import FileRefused

T = TypeVar("T")

LONGEST_RECIPE = 1 << 20
"""Characters of a recipe file."""
DEEPEST_CARD = 16
"""Sections and lists inside one another that a card may have."""
DEEPEST_KEY = 100
"""Parts of a dotted key."""


@dataclass(frozen=True)
class Range:
    """Finite numbers that a setting takes: `least` to `most`, both included unless `above`."""

    least: float
    """The smallest."""
    most: float = math.inf
    """The greatest."""
    above: bool = False
    """Whether it must be above `least`."""

    def refuse(self, name: str, value: float) -> None:
        """Raise `ValueError` for any other number."""
        if isinstance(value, int) and abs(value) > 1 << 1000:  # no float is so large
            raise ValueError(f"{name} is too large a number.")
        low = self.least < value if self.above else self.least <= value
        if low and value <= self.most and math.isfinite(value):
            return
        if self.most == math.inf:
            wanted = f"{'above' if self.above else 'at least'} {self.least:g}, and finite"
            if math.isfinite(value):
                wanted = wanted.removesuffix(", and finite")
        elif self.above:
            wanted = f"above {self.least:g} and at most {self.most:g}"
        else:
            wanted = f"in {self.least:g}..{self.most:g}"
        raise ValueError(f"{name} must be {wanted}, not {value}.")


@dataclass(frozen=True)
class Choice:
    """Words that a setting takes."""

    words: tuple[str, ...]
    """All of them."""

    def refuse(self, name: str, value: str) -> None:
        """Raise `ValueError` for any other word."""
        if value not in self.words:
            *others, last = (f'"{word}"' for word in self.words)
            raise ValueError(f'{name} must be {", ".join(others)} or {last}, not "{value[:40]}".')


# A setting states what it takes once, in its type; `check_ranges` looks there.
Count = Annotated[int, Range(1)]
Steps = Annotated[int, Range(0)]
Weight = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, 1, above=True)]


def check_card(value: Any, where: str = "card", deepest: int = DEEPEST_CARD) -> None:
    """Raise `ValueError` for what a model's card, which is JSON, cannot hold."""
    if deepest < 0:
        raise ValueError(f"{where[:40]}... is nested too deeply for a card.")
    if isinstance(value, dict):
        for name, item in value.items():
            check_card(item, f"{where}.{name}", deepest - 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_card(item, f"{where}[{index}]", deepest - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number, not {value}.")
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(
            f'{where} is a {type(value).__name__}; a card holds text, so write "{value}".'
        )


def check_ranges(settings: Any, where: str) -> None:
    """Raise `ValueError` for a setting that is not in the range beside it."""
    for name, kind in get_type_hints(type(settings), include_extras=True).items():
        for rule in get_args(kind)[1:] if get_origin(kind) is Annotated else ():
            rule.refuse(f"{where}.{name}", getattr(settings, name))


def read_settings(
    kind: type[T],
    path: str | Path,
    changes: list[str] | None = None,
    complete: Callable[[dict[str, Any]], None] = lambda values: None,
) -> T:
    """Read a recipe file into the dataclass `kind`, whose fields are its sections, dataclasses too.

    `changes` are settings "section.key=value" that override it. `complete` is given the sections as
    plain values, with the changes, and may add what follows from them.

    A name that ends in `.json` is read as what a run saved. Paths in it are relative to the current
    folder. Raises `FileRefused` for a file that is not a recipe and `ValueError` for a change that
    is not possible.
    """
    values = _read_values(Path(path))
    try:
        unchanged = copy.deepcopy(values)
    except RecursionError as error:
        raise FileRefused(f"{path} is nested too deeply for a recipe.") from error
    for change in changes or []:
        _apply(values, change)
    complete(values)
    try:
        return _build(kind, values, "")
    except ValueError as error:
        if changes and _is_possible(kind, unchanged):
            raise  # the file is right, the changes are not
        raise FileRefused(f"{path}: {error}") from error


def _has_long_key(text: str) -> bool:
    """Whether TOML has a key of very many parts, which takes its parser their number squared."""
    keys = (line.partition("=")[0].lstrip() for line in text.splitlines())
    return any(key.count(".") > DEEPEST_KEY and key[0] != "#" for key in keys)


def _read_values(path: Path) -> dict[str, Any]:
    kind = "JSON" if path.suffix == ".json" else "TOML"
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > LONGEST_RECIPE or _has_long_key(text):
            raise FileRefused(f"{path} is too long, or nested too deeply, for a recipe.")
        values = json.loads(text) if kind == "JSON" else tomllib.loads(text)
    except OSError as error:
        raise FileRefused(f"{path} cannot be read: {error.strerror}.") from error
    except FileRefused:
        raise
    except ValueError as error:
        raise FileRefused(f"{path} is not {kind}: {error}.") from error
    except RecursionError as error:
        raise FileRefused(f"{path} is nested too deeply for a recipe.") from error
    if not isinstance(values, dict):
        raise FileRefused(f"{path} is not a recipe, which has sections.")
    return values


def _is_possible(kind: type, values: dict[str, Any]) -> bool:
    try:
        _build(kind, values, "")
    except ValueError:
        return False
    return True


def _apply(values: dict[str, Any], change: str) -> None:
    """Set "section.key=value" in nested dicts; the value is TOML, or else text."""
    key, equals, text = change.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot:
        raise ValueError(f'"{change}" is not a setting; write section.key=value.')
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        value = text.strip()
    except RecursionError as error:
        raise ValueError(f"{key} is nested too deeply for a setting.") from error
    settings = values.setdefault(section, {})
    if not isinstance(settings, dict):
        raise ValueError(f'"{change}" has no section to go to: "{section}" is not one.')
    settings[name] = value


def _build(kind: type, values: Any, where: str) -> Any:
    """An instance of a settings class from plain values, each checked against its type."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a section, not {reprlib.repr(values)}.")
    types = get_type_hints(kind)
    names = [item.name for item in fields(kind)]
    arguments = {}
    for name, value in values.items():
        full = f"{where}.{name}" if where else name
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"the names are {', '.join(names)}."
            if near:
                hint = f'did you mean "{full.removesuffix(name)}{near[0]}"?'
            raise ValueError(f'there is no setting "{full}"; {hint}')
        arguments[name] = _convert(types[name], value, full)
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{where or 'the recipe'} is incomplete: {error}.") from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _build(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, not {reprlib.repr(value)}.")
        inner = get_args(kind)[0]
        return tuple(_convert(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{where} is too large a number.") from error
    wanted = get_origin(kind) or kind
    if type(value) is not wanted:
        names = {int: "a whole number", float: "a number", str: "text", dict: "a section"}
        raise ValueError(f"{where} must be {names.get(wanted, wanted)}, not {reprlib.repr(value)}.")
    return value
