"""A hub of one model, which counts what it sends and can be told to hold back, fail, or vanish."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "far/model"
NAME = "model.safetensors"


class SmallHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.sent_bytes = 0
        self.questions = 0  # about the model
        self.statuses: list[int] = []  # to be answered instead of files, one after the other
        self.first_only = threading.Event()  # set: only a range that begins at 0 is answered until `go_on`
        self.go_on = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: SmallHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            self._describe()
        else:
            self._send_range()

    def _describe(self) -> None:
        with self.server.lock:
            self.server.questions += 1
        content = self.server.content
        digest = hashlib.sha256(content).hexdigest()
        lfs = {"sha256": digest, "size": len(content), "pointerSize": 130}
        siblings = [{"rfilename": NAME, "size": len(content), "blobId": "b" * 40, "lfs": lfs}]
        known = self.path.startswith(f"/api/models/{MODEL}/revision/")
        body = json.dumps({"id": MODEL, "sha": digest[:40], "siblings": siblings} if known else {"error": "none"}).encode()
        self._answer(200 if known else 404, body, {} if known else {"X-Error-Code": "RepoNotFound"})

    def _send_range(self) -> None:
        first, last = map(int, self.headers["range"].removeprefix("bytes=").split("-"))
        with self.server.lock:
            status = self.server.statuses.pop(0) if self.server.statuses else 206
        if status != 206:
            self._answer(status, b"later", {"Retry-After": "0"})
            return
        if self.server.first_only.is_set() and first:
            self.server.go_on.wait(60)
        body = self.server.content[first : last + 1]
        with self.server.lock:
            self.server.sent_bytes += len(body)
        self._answer(206, body, {"Content-Range": f"bytes {first}-{last}/{len(self.server.content)}"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not on the tests' output."""


@contextmanager
def small_hub(content: bytes) -> Iterator[SmallHub]:
    server = SmallHub(content)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
