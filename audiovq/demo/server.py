"""The server of the page, which neither fetches nor sends anything elsewhere."""

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiovq.demo.page import CSS, THEME, Others, build
from audiovq.demo.work import Limits
from audiovq.model import AudioVQ

HEADERS = (
    (b"content-security-policy", b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"),
    (b"referrer-policy", b"no-referrer"),
)
"""What a browser may load for the page, and where it may send: this server alone."""


class OnlyHere:
    """Answers go out with `HEADERS`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers)


def application(model: AudioVQ, limits: Limits, others: Others) -> FastAPI:
    """The page as a web application, at its root."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OnlyHere)
    return gr.mount_gradio_app(
        app,
        build(model, limits, others),
        path="/",
        footer_links=[],
        max_file_size=f"{limits.megabytes}mb",
        ssr_mode=False,
        enable_monitoring=False,
        theme=THEME,
        css=CSS,
    )


class Server(uvicorn.Server):
    """A server of `application` that ends without a word while its page is open somewhere."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        mounted = (getattr(route, "app", None) for route in app.routes)
        self._pages = [app for app in mounted if isinstance(app, gr.routes.App)]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the stream that every open page has, and cut off whoever still waits."""
        for page in self._pages:
            page.stop_event.set()
        # Answers that are cut off raise, and uvicorn would print where.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)
        await super().shutdown(sockets)


def serve(model: AudioVQ, limits: Limits, others: Others, at: socket.socket) -> None:
    """Serve the page until Ctrl-C or SIGTERM; what visitors sent is deleted at the end.

    others: codecs to compare with, by name; see `page.Others`. at: listens already.
    """
    # uvicorn ends and then raises the signal again, which by itself would leave the files there.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="audiovq-demo-") as folder, at:
        os.environ["GRADIO_TEMP_DIR"] = folder
        app = application(model, limits, others)
        with contextlib.suppress(KeyboardInterrupt):
            Server(app).run([at])
