"""The command line of audiovq."""

from .app import app

__all__ = ["app"]
