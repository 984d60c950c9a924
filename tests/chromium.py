"""Headless Chromium driven over a pipe by the DevTools protocol, for tests of live pages."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowUp": 38}
KEYS["ArrowDown"] = 40


def _high(number):
    """The same file under a number above those that Chromium expects."""
    found = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(number)
    return found


class Browser:
    """One page in a Chromium of its own; `complaints` has console errors and the like."""

    def __init__(self, folder):
        self._in, theirs_out = map(_high, os.pipe())
        theirs_in, self._out = map(_high, os.pipe())
        # Chromium reads file descriptor 3 and writes 4.
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={folder}/user",
            "--disable-background-networking", "--hide-scrollbars", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", CHROMIUM, *flags],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.complaints, self._number, self._rest, self._session = [], 0, b"", None
        self.requests = []
        self.emulated = {}
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(one for one in targets if one["type"] == "page")
        given = {"targetId": page["targetId"], "flatten": True}
        self._session = self.send("Target.attachToTarget", **given)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        """The result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 60
        while True:
            found = self._read(end)
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]

    def _read(self, end):
        while b"\0" not in self._rest:
            ready, _, _ = select.select(
                [self._in], [], [], max(0, end - time.monotonic())
            )
            assert ready, "Chromium doesn't answer"
            piece = os.read(self._in, 1 << 20)
            assert piece, "Chromium has ended"
            self._rest += piece
        text, self._rest = self._rest.split(b"\0", 1)
        found = json.loads(text)
        method, params = found.get("method"), found.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        if method == "Runtime.consoleAPICalled":
            self.complaints.append(str(params["args"]))
        if method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        if method == "Page.javascriptDialogOpening":
            self.complaints.append(params["message"])
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return found

    def open(self, url):
        """Goes to an address."""
        assert "errorText" not in self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def size(self, width, height, *, dark=False):
        """Sets the screen; below 500 pixels that of a phone."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, code):
        """The value of an expression in the page."""
        found = self.send(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, code, seconds=20):
        """Waits for an expression to be true, and returns its value."""
        end = time.monotonic() + seconds
        while not (found := self.run(code)):
            assert time.monotonic() < end, (code, self.run("document.body.innerText"))
            time.sleep(0.05)
        return found

    def key(self, name, *, shift=False):
        """Presses a key."""
        code = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name]}
        text = {"text": "\r"} if name == "Enter" else {}
        for kind, more in (("keyDown", text), ("keyUp", {})):
            self.send(
                "Input.dispatchKeyEvent", type=kind, modifiers=8 * shift, **code, **more
            )

    def type(self, text):
        """Types a text where the focus is."""
        self.send("Input.insertText", text=text)

    def shot(self, path):
        """Writes a picture of the whole page."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self):
        """Ends Chromium."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._in)
        os.close(self._out)
