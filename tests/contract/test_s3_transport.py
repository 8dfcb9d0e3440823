"""Bodies go over plain connections that are used again, and only then; whatever a server does to one, the caller hears botocore's error."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptstore.config import TierSettings
from ckptstore.errors import TierUnavailable
from ckptstore_tiers.s3_connection import S3Connection
from ckptstore_tiers.s3_options import read_s3_settings
from ckptstore_tiers.s3_socket import SEND_BYTES
from ckptstore_tiers.s3_transport import Body
from tests.contract.tier_contract import content

DATA = content(3 * SEND_BYTES + 11)
OK = b"HTTP/1.1 200 OK\r\nETag: \"x\"\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nContent-Length: %d\r\n\r\n%s"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testtesttest")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def receive_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head of a request and its body; two empty ones at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b"", b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
    while len(body) < length and (more := connection.recv(65536)):
        body += more
    return head, body


class Server:
    """Serves one connection after the other with `serve`, on loopback."""

    def __init__(self, serve: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> None:
        self._serve, self._context = serve, context
        self.connections = 0
        self.ended = threading.Semaphore(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                with self._context.wrap_socket(connection, server_side=True) if self._context else connection as plain:
                    self._serve(plain)
            except OSError:
                continue
            finally:
                self.ended.release()

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@contextmanager
def connected(url: str) -> Iterator[S3Connection]:
    options = {"endpoint_url": url, "retry_for_s": 0, "read_timeout_s": 2.0, "region": "us-east-1"}
    settings = TierSettings(name="object", kind="object", url="s3://bucket/prefix", options=options)
    connection = S3Connection("object", *read_s3_settings(settings))
    yield connection
    connection.close()


def get(connection: S3Connection) -> bytes:
    return connection.call("read", "k", lambda s3: s3.get_object(Bucket="bucket", Key="k")["Body"].read())


def put(connection: S3Connection, *pieces: bytes) -> None:
    connection.ask("put", "k", "put_object", Key="k", body=[memoryview(piece) for piece in pieces], retry_for_s=0)


def test_a_connection_whose_answers_were_read_is_used_again() -> None:
    received: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        while (request := receive_request(connection))[0]:
            received.append(request[1])
            connection.sendall(OK % (len(DATA), DATA) if request[0].startswith(b"GET") else OK % (0, b""))

    with Server(serve) as server, connected(server.url) as s3:
        for _ in range(3):
            assert get(s3) == DATA
            put(s3, DATA[:5], b"", DATA[5:])
    assert (server.connections, received) == (1, [b"", DATA] * 3)


def test_a_connection_that_the_server_closed_while_it_was_idle_is_not_used_again() -> None:
    def serve(connection: socket.socket) -> None:
        if receive_request(connection)[0]:
            connection.sendall(OK % (len(DATA), DATA))

    with Server(serve) as server, connected(server.url) as s3:
        for _ in range(3):
            assert get(s3) == DATA
            assert server.ended.acquire(timeout=10)  # else the next request may be on its way before the end is
    assert server.connections == 3


def test_a_body_is_not_kept_back_until_the_server_says_continue() -> None:
    heads: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        head, _ = receive_request(connection)
        heads.append(head.lower())
        connection.sendall(OK % (0, b""))

    with Server(serve) as server, connected(server.url) as s3:
        put(s3, DATA)
    assert [b"expect" in head for head in heads] == [False]


def test_a_refusal_in_the_middle_of_the_body_is_heard() -> None:
    refusal = b"<Error><Code>SlowDown</Code><Message>later</Message></Error>"

    def serve(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(refusal), refusal))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):  # the rest is thrown away: a close would take the answer with it
            pass

    with Server(serve) as server, connected(server.url) as s3, pytest.raises(TierUnavailable, match="SlowDown"):
        put(s3, content(8 << 20))


FAULTY = {
    "hang_up": b"",
    "half_a_head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "no_http": b"220 mail.example.org ESMTP\r\n",
    "cut_off": OK % (len(DATA) + 1, DATA),
    "cut_off_chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nwo",
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_broken_answer_is_an_unavailable_tier_and_its_connection_is_not_used_again(name: str) -> None:
    answers = iter([FAULTY[name], OK % (len(DATA), DATA)])

    def serve(connection: socket.socket) -> None:
        receive_request(connection)
        connection.sendall(next(answers))

    with Server(serve) as server, connected(server.url) as s3:
        with pytest.raises(TierUnavailable):
            get(s3)
        assert get(s3) == DATA
    assert server.connections == 2


SILENT = {
    "in the head": lambda connection: (receive_request(connection), connection.sendall(OK[:20])),
    "in the body": lambda connection: (receive_request(connection), connection.sendall((OK % (len(DATA), DATA))[: len(DATA) // 2])),
    "before the body is taken": lambda connection: connection.recv(1000),
}


@pytest.mark.parametrize("when", SILENT)
def test_silence_ends_after_the_timeout(when: str) -> None:
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        SILENT[when](connection)
        ended.wait(30)

    with Server(serve) as server, connected(server.url) as s3:
        with pytest.raises(TierUnavailable, match="timeout"):
            put(s3, content(16 << 20)) if when == "before the body is taken" else get(s3)
        assert s3.window.figures.refusals == 1
        ended.set()


def test_a_server_may_pause_again_and_again_for_less_than_the_timeout() -> None:
    """The kernel gives on what has come by then, in pieces as large as the server's, whichever way the bytes go."""
    received: list[bytes] = []
    whole, pauses = OK % (len(DATA), DATA), threading.Event()

    def serve(connection: socket.socket) -> None:
        head, _ = receive_request(connection)
        assert head.startswith(b"GET")
        for start in range(0, len(whole), len(whole) // 3):
            connection.sendall(whole[start : start + len(whole) // 3])
            pauses.wait(0.9)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        connection.recv(1, socket.MSG_PEEK)
        pauses.wait(0.9)
        received.append(receive_request(connection)[1])
        connection.sendall(OK % (0, b""))

    with Server(serve) as server, connected(server.url) as s3:
        assert get(s3) == DATA
        put(s3, DATA * 8)
    assert (server.connections, received) == (1, [DATA * 8])


def test_a_server_that_takes_a_body_slowly_is_not_silent_until_it_has_it() -> None:
    """The kernel has all of it long before: the answer comes more than a timeout after the last byte was given away."""
    received, body, pauses = bytearray(), DATA * 2, threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        while (left := len(body) - len(received)) > 0:
            received.extend(connection.recv(min(SEND_BYTES, left), socket.MSG_WAITALL))
            pauses.wait(0.6)
        while len(received.partition(b"\r\n\r\n")[2]) < len(body):
            received.extend(connection.recv(65536))
        connection.sendall(OK % (0, b""))

    with Server(serve) as server, connected(server.url) as s3:
        put(s3, body)
    assert (server.connections, bytes(received.partition(b"\r\n\r\n")[2])) == (1, body)


def test_nobody_listening_is_an_unavailable_tier() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with connected(f"http://127.0.0.1:{port}") as s3, pytest.raises(TierUnavailable, match="connect"):
        get(s3)


def test_https_trusts_the_configured_authority_and_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *kind, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(connection: socket.socket) -> None:
        while receive_request(connection)[0]:
            connection.sendall(OK % (len(DATA), DATA))

    with Server(serve, context) as server:
        with connected(server.url) as s3, pytest.raises(TierUnavailable, match="SSL"):
            get(s3)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        with connected(server.url) as s3:
            assert get(s3) == get(s3) == DATA


def test_behind_a_proxy_botocore_carries_the_bodies_too(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        heads.append(receive_request(connection)[0])
        connection.sendall(OK % (len(DATA), DATA))

    with Server(serve) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with connected("http://store.example.org") as s3:
            assert get(s3) == DATA
    assert heads[0].startswith(b"GET http://store.example.org/bucket/k")


@pytest.mark.parametrize("asked", [1, SEND_BYTES, 10 * SEND_BYTES])
def test_a_body_of_pieces_reads_as_one_and_again_from_any_place(asked: int) -> None:
    body = Body(DATA[:10], b"", memoryview(DATA)[10 : 2 * SEND_BYTES], DATA[2 * SEND_BYTES :])
    for start in (0, 5, 10, SEND_BYTES, len(DATA)):
        body.seek(start)
        assert b"".join(iter(lambda: bytes(body.read(asked)), b"")) == DATA[start:]
        assert body.tell() == len(body) == len(DATA)
