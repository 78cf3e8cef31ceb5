"""Modules that stand elsewhere now: importing an old name gives the new module, with a warning."""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "audiovq.recipe": "audiovq.training.recipe",
    "audiovq.prepare": "audiovq.training.prepare",
    "audiovq.data": "audiovq.training.data",
    "audiovq.losses": "audiovq.training.losses",
    "audiovq.discriminator": "audiovq.training.discriminator",
    "audiovq.checkpoint": "audiovq.training.checkpoint",
    "audiovq.training.interrupt": "audiovq.interrupt",
    "audiovq.training.hardware": "audiovq.hardware",
    "audiovq.train": "audiovq.training.loop",
    "audiovq.metrics": "audiovq.quality.metrics",
    "audiovq.peers": "audiovq.quality.peers",
    "audiovq.evaluate": "audiovq.quality.evaluate",
    "audiovq.quality_report": "audiovq.quality.report",
    "audiovq.alignments": "audiovq.units.alignments",
    "audiovq.abx": "audiovq.units.abx",
    "audiovq.baselines": "audiovq.units.baselines",
    "audiovq.units_compare": "audiovq.units.compare",
    "audiovq.units_files": "audiovq.units.files",
    "audiovq.units_report": "audiovq.units.report",
}
"""Old name to new name. `audiovq.units` was a module and is a package with the same names."""


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is {new} now.", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module has run already, under its own name; it keeps its own spec."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Let old names be imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
