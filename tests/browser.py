"""A headless Chromium, driven through the DevTools protocol over a pair of pipes."""

import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--mute-audio",
    "--window-size=1400,900",
    "--remote-debugging-pipe",
)
# Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
PIPES = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)


class Page:
    """One tab.

    Attributes:
        errors: What was written to the console as an error, and exceptions nobody caught.
        requests: Addresses that were asked for, the page itself and data inside it left out.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._numbers, self._buffer = itertools.count(1), b""
        self._loaded: list[float] = []
        self._document = ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = None
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read(60)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def _read(self, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not select.select([self._answers], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            self._buffer += os.read(self._answers, 1 << 20)
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, content: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = content["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled" and content["type"] == "error":
            self.errors.append(str(content["args"]))
        elif event == "Log.entryAdded" and content["entry"]["level"] == "error":
            self.errors.append(content["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            address = content["request"]["url"]
            if address.partition("#")[0] != self._document and not address.startswith(("data:", "blob:")):
                self.requests.append(address)
        elif event == "Page.loadEventFired":
            self._loaded.append(content["timestamp"])

    def open(self, address: str) -> None:
        """Load an address and wait until the page says that it is ready."""
        self._document = address.partition("#")[0]
        # An address that differs in its hash alone would not load anything.
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=address)
        self.wait("document.documentElement?.dataset.ready !== undefined")

    def run(self, script: str) -> Any:
        """Return what an expression comes to; promises are awaited."""
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"]["description"])
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until an expression is true.

        Raises:
            TimeoutError: It never is.
        """
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} is never true; errors of the page: {self.errors}")
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press and release a key."""
        text = {"text": key} if len(key) == 1 else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def prefer(self, scheme: str) -> None:
        """Let the page see a preference for ``dark`` or ``light``."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window, in CSS pixels."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def accessible(self, frame: int = 0) -> list[dict[str, Any]]:
        """Return the nodes that assistive technology sees, role and name, in the page or in one of its frames."""
        tree = self._call("Page.getFrameTree")["frameTree"]
        frames = [tree, *tree.get("childFrames", [])]
        nodes = self._call("Accessibility.getFullAXTree", frameId=frames[frame]["frame"]["id"])["nodes"]
        return [
            {"role": node.get("role", {}).get("value"), "name": node.get("name", {}).get("value", "")}
            for node in nodes
            if not node["ignored"]
        ]

    def upload(self, selector: str, path: Path) -> None:
        """Choose a file in a file input."""
        found = self._call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self._call("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    def downloads(self, folder: Path) -> None:
        """Let the page put downloads into a folder."""
        self._call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def picture(self, path: Path) -> None:
        """Write what is seen as PNG."""
        import base64

        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def page(folder: Path) -> Iterator[Page]:
    """Yield a tab of a browser whose profile is in a folder."""
    assert CHROMIUM
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    # Above 9, so that neither stands where the other is to be put.
    given = [fcntl.fcntl(number, fcntl.F_DUPFD, 10) for number in (theirs_in, theirs_out)]
    browser = subprocess.Popen(
        [sys.executable, "-c", PIPES, *map(str, given), CHROMIUM, *FLAGS, f"--user-data-dir={folder}"],
        pass_fds=given,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for number in (theirs_in, theirs_out, *given):
        os.close(number)
    try:
        yield Page(ours_out, ours_in)
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()
        os.close(ours_out)
        os.close(ours_in)
