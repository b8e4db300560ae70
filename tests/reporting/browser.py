"""A real Chromium for the tests of the page, driven over its debugging pipe: no driver, no port."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-default-browser-check",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# Chromium reads commands from descriptor 3 and answers on 4; a launcher puts the pipes there.
LAUNCHER = (
    "import os, sys; a, b = int(sys.argv[1]), int(sys.argv[2]); "
    "os.dup2(a, 3); os.dup2(b, 4); os.execvp(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One tab of a headless Chromium; `events` holds everything it reported."""

    def __init__(self, executable: str, seconds: float = 60.0):
        self.deadline_s = seconds
        self.events: list[dict[str, Any]] = []
        self._buffer = b""
        self._last = 0
        self._session: str | None = None
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        command_read, self._write = _high_pipe(reading_end=True)
        self._read, answer_write = _high_pipe(reading_end=False)
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", LAUNCHER, str(command_read), str(answer_write), executable,
             *FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            pass_fds=(command_read, answer_write),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(command_read)
        os.close(answer_write)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(
        self, page: Path, *, width: int = 1280, height: int = 900, scheme: str = "light", media=""
    ):
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media=media, features=[feature])
        self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self._receive()
        # Two frames: layout done, and whatever the page starts after loading has been reported.
        self.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")

    def evaluate(self, expression: str) -> Any:
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", answer))
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Everything that would stand in the console as an error or a warning."""
        found = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            elif method == "Runtime.consoleAPICalled":
                found.append(json.dumps(params["args"]))
        return found

    def requests(self) -> list[str]:
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path) -> None:
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._session = None
            self.call("Browser.close")
        os.close(self._write)
        os.close(self._read)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + self.deadline_s
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._read, 1 << 16) if ready else b""
            if not chunk:
                raise RuntimeError("Chromium did not answer")
            self._buffer += chunk
        raw, self._buffer = self._buffer.split(b"\0", 1)
        answer = json.loads(raw)
        if "method" in answer:
            self.events.append(answer)
        return answer


def _high_pipe(*, reading_end: bool) -> tuple[int, int]:
    """Open a pipe whose inherited end lies above 4, out of the way of the descriptors dup2 fills."""
    import fcntl

    read, write = os.pipe()
    ends = [read, write]
    inherited = 0 if reading_end else 1
    moved = fcntl.fcntl(ends[inherited], fcntl.F_DUPFD, 10)
    os.close(ends[inherited])
    ends[inherited] = moved
    return ends[0], ends[1]
