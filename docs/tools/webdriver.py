"""A headless Chromium over the W3C WebDriver protocol, with the standard library alone.

Needs chromium and chromedriver on the PATH (Debian: ``apt-get install chromium chromium-driver``).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
PROGRAMS = ("chromium", "chromedriver")


class PageError(Exception):
    """A page does not show what it must."""


class Browser:
    """A headless Chromium.

    Args:
        port: where chromedriver listens.
        folder: for pictures.
    """

    def __init__(self, port: int, folder: Path) -> None:
        self._address = f"http://{HOST}:{port}"
        self._folder = folder
        self._session = ""

    def open_session(self, profile: str) -> None:
        """Start the browser."""
        arguments = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--hide-scrollbars", "--no-first-run", "--disable-background-networking"),
            f"--user-data-dir={profile}",
        ]
        options = {"binary": shutil.which("chromium"), "args": arguments}
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self._session = self._call("/session", {"capabilities": wanted})["sessionId"]

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page."""
        self._command("/window/rect", {"width": width, "height": height})

    def visit(self, url: str) -> None:
        """Load a page afresh: a change behind the '#' alone would keep the old page's state."""
        for address in ("about:blank", url):
            self._command("/url", {"url": address})

    def run(self, script: str) -> Any:
        """Run JavaScript in the page and return what it returns."""
        return self._command("/execute/sync", {"script": script, "args": []})

    def text(self) -> str:
        """Return what the page says."""
        return str(self.run("return document.body ? document.body.innerText : ''"))

    def wait(self, condition: str, what: str, seconds: float = 60.0) -> None:
        """Wait until a JavaScript expression is true.

        Raises:
            PageError: if it never is.
        """
        self.wait_until(lambda: bool(self.run(f"return !!({condition})")), what, seconds)

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Wait until something is so.

        Raises:
            PageError: if it never is; the page as it is then is in ``failed.png``.
        """
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                self.save("failed")
                raise PageError(
                    f"the page never showed {what}: see {self._folder / 'failed.png'}; it says "
                    f"{self.text()[:1000]!r}"
                )
            time.sleep(0.25)

    def save(self, name: str) -> Path:
        """Save the page as a picture; returns its path."""
        picture = base64.b64decode(self._call(f"/session/{self._session}/screenshot"))
        file = self._folder / f"{name}.png"
        file.write_bytes(picture)
        return file

    def _command(self, path: str, body: dict[str, Any]) -> Any:
        return self._call(f"/session/{self._session}{path}", body)

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._address + path, content, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise PageError(error.read().decode()[:300]) from error


def missing_programs() -> list[str]:
    """Return what a browser needs and the PATH does not have."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start chromedriver and a browser of our own; end both, whatever happens.

    Raises:
        PageError: if they are not there, or do not start.
    """
    if missing_programs():
        raise PageError(f"not on the PATH: {', '.join(missing_programs())}")
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port = int(listener.getsockname()[1])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_for_driver(port)
            page = Browser(port, folder)
            page.open_session(profile)
            yield page
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


def _wait_for_driver(port: int) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/status", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise PageError("chromedriver did not start")
