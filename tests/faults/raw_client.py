"""A client that keeps no rule by itself: single requests and descriptor messages, in whatever order and with whatever content."""

from __future__ import annotations

import secrets
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from ckptstore.config import read_settings
from ckptstore.errors import CkptStoreError
from ckptstore.wire import SESSION_HEADER, HandOver
from ckptstore_client.descriptors import DescriptorConnection, MappedSegment
from ckptstore_client.staging import Staging
from tests.daemon_process import DaemonProcess
from tests.until import until


def part_file(data_bytes: int, *, fill: int = 7) -> bytes:
    """A well-formed rank's file with one tensor `w` of so many bytes."""
    staging = Staging()
    staged = staging.plan({"w": np.full(data_bytes, fill, np.uint8)})
    file = bytearray(staged.size_bytes)
    staging.copy(staged, memoryview(file))
    return bytes(file)


class RawClient:
    """One session on the unix sockets. `hang_up` ends it the hard way; leaving the `with` block does as well.

    `by_socket`: it hands over as the client library does, on the session's own connection; else by HTTP.
    """

    def __init__(self, daemon: DaemonProcess, *, by_socket: bool = False) -> None:
        self.by_socket = by_socket
        settings = read_settings(daemon.home / "config.toml", home=daemon.home)
        self.descriptors = DescriptorConnection(settings.fd_socket)
        self.fd_socket = settings.fd_socket
        self.http = daemon.http()
        self.http.headers[SESSION_HEADER] = self.descriptors.session

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        self.descriptors.close()
        self.http.close()

    def join(self, path: str, **fields: Any) -> httpx.Response:
        message = {"path": path, "token": secrets.token_hex(8), "ordinal": 0, "rank": 0, "world_size": 1, "size_bytes": 1 << 16}
        return self.http.post("/v1/attempts", json=message | fields)

    def opened(self, path: str, **fields: Any) -> dict[str, Any]:
        response = self.join(path, **fields)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def segment(self, opened: dict[str, Any]) -> MappedSegment:
        return self.descriptors.segment(opened["segment"]["segment_id"])

    def stage(self, path: str, content: bytes, **fields: Any) -> tuple[dict[str, Any], MappedSegment]:
        """Join, and write `content` into the slot; not handed over yet."""
        opened = self.opened(path, **({"size_bytes": len(content)} | fields))
        segment = self.segment(opened)
        segment.view[: len(content)] = content
        return opened, segment

    def hand_over(self, opened: dict[str, Any], size_bytes: int, *, rank: int = 0, **fields: Any) -> httpx.Response:
        grant = opened["segment"]
        message = {"segment_id": grant["segment_id"], "generation": grant["generation"], "size_bytes": size_bytes} | fields
        if not self.by_socket:
            return self.http.post(f"/v1/attempts/{opened['attempt_id']}/ranks/{rank}/handover", json=message)
        try:
            self.descriptors.hand_over(opened["attempt_id"], rank, HandOver.model_construct(**message))
        except CkptStoreError as error:
            return httpx.Response(error.http_status, json=error.to_wire())
        return httpx.Response(200)

    def abort(self, opened: dict[str, Any], reason: str = "because") -> httpx.Response:
        return self.http.post(f"/v1/attempts/{opened['attempt_id']}/abort", json={"reason": reason})

    def attempt(self, opened: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/attempts/{opened['attempt_id']}").json()
        return found

    def outcome(self, opened: dict[str, Any]) -> dict[str, Any]:
        """The attempt, once it is published or aborted."""
        return until("the attempt has ended", lambda: (found := self.attempt(opened))["state"] in ("published", "aborted") and found)
