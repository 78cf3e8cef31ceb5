"""The installed package is the checkout's."""

import importlib.metadata
import tomllib
from pathlib import Path

import audiovq
import audiovq_cli

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_listed_packages_are_all_there_are():
    folders = PROJECT["tool"]["setuptools"]["package-dir"]
    found = set()
    for name, folder in folders.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            inner = path.parent.relative_to(ROOT / folder)
            found.add(".".join([name, *inner.parts]))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_versions_agree():
    assert PROJECT["project"]["version"] == audiovq.__version__
    assert importlib.metadata.version("audiovq") == audiovq.__version__


def test_the_entry_point_is_the_app():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="audiovq")
    assert script.load() is audiovq_cli.app


def test_all_names_exist():
    assert all(hasattr(audiovq, name) for name in audiovq.__all__)
