"""Chromium without a window, driven by its DevTools protocol over two pipes, and pages for it."""

import contextlib
import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")


class Browser:
    """One tab. `problems` are errors of the console: scripts, policies, what was not found."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = os.fdopen(read, "rb"), write
        self._number, self._session, self._rest = 0, "", b""
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """What a method of the protocol returns."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                piece = os.read(self._read.fileno(), 1 << 16)
                assert piece, "Chromium has ended"
                self._rest += piece
            line, _, self._rest = self._rest.partition(b"\0")
            found = json.loads(line)
            self._note(found)
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return found["result"]

    def run(self, script: str) -> Any:
        """The value of an expression; promises are awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true, for 30 seconds; then raises with the page's text."""
        script = f"""new Promise((done, fail) => {{
            const end = Date.now() + 30000;
            (function look() {{
                if ({condition}) done(true);
                else if (Date.now() > end) fail(new Error(document.body.innerText));
                else setTimeout(look, 50);
            }})();
        }})"""
        self.run(script)

    def resize(self, width: int, height: int = 900, dark: bool = False) -> None:
        """Sets the window, in CSS pixels, and the colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def _note(self, event: Any) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(str(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.problems.append(f"{params['entry']['text']} {params['entry'].get('url')}")
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self.problems.append(str(params["args"]))


@contextlib.contextmanager
def browser(folder: Path, *, seconds: float = 120) -> Iterator[Browser]:
    """Starts Chromium with a profile in a folder.

    Args:
      folder: of the profile.
      seconds: after which it is killed: a browser that hangs must not hang who waits for it.
    """
    (their_read, write), (read, their_write) = os.pipe(), os.pipe()
    # The protocol wants the pipes at 3 and 4.
    command = f'exec "$@" 3<&{their_read} 4>&{their_write}'
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", str(CHROMIUM), *_FLAGS, f"--user-data-dir={folder}"],
        pass_fds=(their_read, their_write),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(their_read)
    os.close(their_write)
    watchdog = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        yield Browser(read, write)
    finally:
        watchdog.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(write)


@contextlib.contextmanager
def static_host(folder: Path) -> Iterator[str]:
    """A static host without headers of its own; gives the address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def visit(tab: Browser, address: str, opened: str) -> None:
    """Opens an address, and waits until an expression is true of its page."""
    tab.call("Page.navigate", url="about:blank")
    tab.call("Page.navigate", url=address)
    settle(tab, opened)


def settle(tab: Browser, condition: str) -> None:
    """Waits for a condition; the page may load itself anew, which ends the context of a wait."""
    for _ in range(3):
        with contextlib.suppress(AssertionError):
            tab.wait(condition)
            return
    raise AssertionError(tab.run("document.body.innerText"))
