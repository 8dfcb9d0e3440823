"""The framing of the descriptor socket: lines and descriptors, whole or in pieces, promised errors and no others."""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore import fd_protocol
from ckptstore.errors import (
    InvalidInput,
)
from ckptstore.wire import Message
from tests.faults.fd_socket_place import (
    descriptors_of,
)


class Long(Message):
    text: str


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    one.settimeout(60)
    other.settimeout(60)
    yield one, other
    one.close()
    other.close()


def test_a_long_message_and_its_descriptors_arrive_together(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    message = Long(text="é\n" * 200_000)
    read, write = os.pipe()
    sender = threading.Thread(target=fd_protocol.send, args=(one, message, [read, write]))
    sender.start()
    document, fds = fd_protocol.receive(other, 8 << 20, fd_limit=2)
    sender.join(60)
    assert fd_protocol.read_as(document, Long) == message
    os.write(fds[1], b"through")
    assert os.read(fds[0], 7) == b"through"
    assert not any(os.get_inheritable(fd) for fd in fds)
    fd_protocol.close_all([read, write, *fds])


def test_a_message_may_come_byte_by_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    line = Long(text="x").model_dump_json().encode() + b"\n"
    sender = threading.Thread(target=lambda: [one.send(line[i : i + 1]) for i in range(len(line))])
    sender.start()
    assert fd_protocol.receive(other) == ({"text": "x"}, [])
    sender.join(60)
    assert other.gettimeout() == 60


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_a_message_has_a_greatest_length(pair: tuple[socket.socket, socket.socket], excess: int) -> None:
    one, other = pair
    line = Long(text="x" * 100).model_dump_json().encode() + b"\n"
    one.sendall(line)
    if excess > 0:
        with pytest.raises(InvalidInput, match="longer"):
            fd_protocol.receive(other, len(line) - excess)
    else:
        assert fd_protocol.receive(other, len(line) - excess)[0]["text"] == "x" * 100


def test_nothing_to_read_in_time_is_a_timeout_and_a_hang_up_is_not(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    other.settimeout(0.01)
    with pytest.raises(TimeoutError):
        fd_protocol.receive(other)
    one.close()
    with pytest.raises(ConnectionError):
        fd_protocol.receive(other)


PIECES = st.binary(max_size=40) | st.sampled_from([b"{", b"}", b"\n", b'"text":', b'"x"', b"[", b"null", b"1e999", b"NaN"])


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=12), st.integers(0, 3))
def test_whatever_bytes_arrive_only_the_promised_errors_come_out(parts: list[bytes], fd_count: int) -> None:
    one, other = socket.socketpair()
    with one, other, open("/dev/null", "rb") as attached:
        one.sendall(b"".join(parts))
        rights = array.array("i", [attached.fileno()] * fd_count)
        one.sendmsg([b"\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fd_count else [])
        one.close()
        before = descriptors_of("/dev/null")
        try:
            document, fds = fd_protocol.receive(other, 300, fd_limit=1)
            fd_protocol.close_all(fds)
            assert isinstance(document, dict)
        except (InvalidInput, ConnectionError):
            pass
        assert descriptors_of("/dev/null") == before
