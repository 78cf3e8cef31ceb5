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


def test_what_is_no_python_is_in_the_package_too():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    root = ROOT / "audiovq"
    packed = {
        path
        for package, globs in patterns.items()
        for glob in globs
        for path in root.joinpath(*package.split(".")[1:]).glob(glob)
    }
    others = {path for path in root.rglob("*") if path.is_file() and ".py" not in path.suffix}
    assert {path.name for path in others} >= {"page.html", "config.json"}
    assert others - packed - {root / "py.typed"} == set()
