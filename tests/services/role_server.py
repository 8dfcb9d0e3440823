"""What a machine or a container asks for the credentials of its role: EC2's metadata service (version 2), and the agent of ECS and EKS."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROLE = "training"
_TOKEN = "a-session-with-the-metadata-service"
_FOLDER = "/latest/meta-data/iam/security-credentials/"


class RoleServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.access_key, self.secret_key, self.expires_in_s = "", "", 3600.0
        self.given = 0

    def instance(self) -> dict[str, str]:
        """What leads a process to the role of its machine."""
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{self.server_address[1]}", "AWS_EC2_METADATA_DISABLED": "false"}

    def container(self) -> dict[str, str]:
        """What leads a process to the role of its container."""
        return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{self.server_address[1]}/container"}

    def credentials(self) -> str:
        self.given += 1
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.expires_in_s))
        names = {"AccessKeyId": self.access_key, "SecretAccessKey": self.secret_key, "Token": "", "Expiration": expires}
        return json.dumps({"Code": "Success", "Type": "AWS-HMAC", **names})


class _Handler(BaseHTTPRequestHandler):
    server: RoleServer

    def do_PUT(self) -> None:
        self._answer(200 if self.path == "/latest/api/token" else 404, _TOKEN)

    def do_GET(self) -> None:
        if self.path == "/container":
            self._answer(200, self.server.credentials())
        elif self.headers["x-aws-ec2-metadata-token"] != _TOKEN:
            self._answer(401, "")
        elif self.path == _FOLDER:
            self._answer(200, ROLE)
        elif self.path == _FOLDER + ROLE:
            self._answer(200, self.server.credentials())
        else:
            self._answer(404, "")

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing: the tests look at what was given."""


@contextmanager
def role_server() -> Iterator[RoleServer]:
    with RoleServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
