"""Headless Chromium by its DevTools protocol, and a file server on loopback."""

import base64
import contextlib
import functools
import http.server
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time

# No requests of its own to anywhere, and no sandbox where the user is root.
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip


def program():
    """The path of Chromium, or nothing if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Server:
    """Serves a folder on loopback until it is stopped; counts what it sends."""

    def __init__(self, folder):
        self.requests = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            extensions_map = {
                **http.server.SimpleHTTPRequestHandler.extensions_map,
                ".mjs": "text/javascript",
                ".wasm": "application/wasm",
            }

            def log_message(handler, *args):  # noqa: N805
                self.requests.append(handler.path)

        handler = functools.partial(Handler, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def stop(self):
        """Ends it: from here on the address refuses connections."""
        self._server.shutdown()
        self._server.server_close()


class Browser:
    """One window of a browser, which is told what to do through two pipes."""

    def __init__(self, *flags, size=(1280, 900)):
        self._profile = tempfile.mkdtemp()
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        # Chromium reads from the file descriptor 3 and writes to 4.
        options = [
            *FLAGS,
            *flags,
            "--remote-debugging-pipe",
            f"--window-size={size[0]},{size[1]}",
            f"--user-data-dir={self._profile}",
            "about:blank",
        ]
        shell = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, program(), *options],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        self._buffer, self._count, self._session = b"", 0, None
        self.errors = []  # of the pages: what they threw, and errors in the console
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self):
        targets = self.tell("Target.getTargets", seconds=90)["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        found = self.tell("Target.attachToTarget", targetId=page, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.tell(f"{domain}.enable")

    def tell(self, command, seconds=60, **parameters):
        """The answer of the browser to a command of the protocol."""
        self._count += 1
        message = {"id": self._count, "method": command, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + seconds
        while (answer := self._next(end, command)).get("id") != self._count:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']['message']}")
        return answer["result"]

    def _next(self, end, command):
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                raise TimeoutError(f"the browser does not answer to {command}.")
            read = os.read(self._from, 1 << 20)
            if not read:
                raise RuntimeError("the browser ended.")
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        method, said = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(said["exceptionDetails"]["text"])
        if method == "Runtime.consoleAPICalled" and said["type"] == "error":
            self.errors.append(str(said["args"]))
        if method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(said["entry"]["text"])

    def close(self):
        """Ends the browser."""
        with contextlib.suppress(Exception):
            self._session = None
            self.tell("Browser.close", seconds=10)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # with its children
            self._process.wait(10)
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url):
        """Visits an address, and waits until its document is there."""
        self.run("window.isOld = true")
        found = self.tell("Page.navigate", url=url)
        assert "errorText" not in found, found["errorText"]
        self.until("!window.isOld && document.readyState !== 'loading'")

    def run(self, expression):
        """The value of an expression, or what its promise resolves to."""
        found = self.tell(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def until(self, expression, seconds=30):
        """The first value of an expression that counts as true."""
        end = time.monotonic() + seconds
        while not (found := self._value(expression)):
            if time.monotonic() > end:
                shown = self.run("document.body.innerText")
                raise AssertionError(f"never true: {expression}. The page: {shown}")
            time.sleep(0.05)
        return found

    def _value(self, expression):
        """The value of an expression, nothing while one page takes another's place."""
        try:
            return self.run(expression)
        except RuntimeError as error:
            if "context" not in str(error) and "navigated" not in str(error):
                raise
            return None

    def text(self, name):
        """What an element shows, by its id."""
        return self.run(f"document.getElementById('{name}').innerText")

    def click(self, selector):
        """Clicks in the middle of an element."""
        self.draw(selector, [(0.5, 0.5)])

    def choose(self, selector, path):
        """Chooses a file, in an element for that."""
        element = f"document.querySelector({json.dumps(selector)})"
        found = self.tell("Runtime.evaluate", expression=element)["result"]
        self.tell(
            "DOM.setFileInputFiles", objectId=found["objectId"], files=[str(path)]
        )

    def draw(self, selector, points):
        """Draws a line with the mouse; points are shares of width and height."""
        x, y, width, height = self.run(
            f"""(() => {{
              const element = document.querySelector({json.dumps(selector)});
              element.scrollIntoView({{block: "center"}});
              const box = element.getBoundingClientRect();
              return [box.x, box.y, box.width, box.height];
            }})()"""
        )
        places = [(x + a * width, y + b * height) for a, b in points]
        kinds = ["mouseMoved", "mousePressed"]
        kinds += (len(places) - 1) * ["mouseMoved"] + ["mouseReleased"]
        places = [places[0], *places, places[-1]]
        for i, (kind, (a, b)) in enumerate(zip(kinds, places, strict=True)):
            pressed = {"button": "left", "buttons": 1, "clickCount": 1} if i else {}
            self.tell("Input.dispatchMouseEvent", type=kind, x=a, y=b, **pressed)

    def press(self, *keys):
        """Presses keys, by the names that the web has for them."""
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                self.tell("Input.dispatchKeyEvent", type=kind, key=key)

    def before_every_page(self, script):
        """Runs a script in every page before its own."""
        self.tell("Page.addScriptToEvaluateOnNewDocument", source=script)

    def narrow(self, width=390, height=844):
        """Makes the window that of a phone."""
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=2, mobile=True,
        )  # fmt: skip

    def screenshot(self, path):
        """All of the page, as a PNG."""
        page = "document.documentElement"
        width, height = self.run(f"[{page}.clientWidth, {page}.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.tell(
            "Page.captureScreenshot", captureBeyondViewport=True, clip=clip
        )
        path = pathlib.Path(path)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path
