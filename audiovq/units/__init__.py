"""What units stand for: phones, speakers, boundaries; tables and pages."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Until 0.1 this was one module, whose names are those of `measures`.
    from audiovq.units import measures

    if name.startswith("_") or not hasattr(measures, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(measures, name)
