"""`python -m audiovq_cli`."""

from .app import app

app()
