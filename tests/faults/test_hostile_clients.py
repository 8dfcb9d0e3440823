"""A client breaks every rule, at every step: it harms at most its own checkpoint, and the daemon goes on as if nothing had been.

Raw requests and descriptor messages against a real daemon. After each test the daemon must answer within a second, hold no attempt
that nobody works on, and have its segments and memory back; what it published must verify.

Who may end an attempt: whoever knows its id. The id is 80 random bits that only the ranks get that joined with the group's secret
token; nothing lists it while the attempt is open, so that it is the capability. The socket (mode 0600) and the bearer token keep other
users out; among the processes of one user there is no other wall.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ckptstore.errors import NotFound
from ckptstore.part import PART_FORMAT
from ckptstore_client import Store
from tests.faults.fault_store import FaultStore, posix_tier, state_of, verified
from tests.faults.raw_client import RawClient, part_file
from tests.until import until

MIB = 1 << 20
#: The daemon's memory may grow by this much over a test (caches, arenas of its threads), in bytes.
RESIDENT_SLACK_BYTES = 120 * MIB


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultStore]:
    folder = tmp_path_factory.mktemp("hostile")
    tiers = [posix_tier("nvme", folder / "nvme"), posix_tier("pfs", folder / "pfs", shared=True)]
    with FaultStore(folder / "home", tiers, settings={"memory": {"limit": "512MiB"}, "attempt_timeout_s": 60}) as place:
        place.start()
        with place.connect() as store:
            store.save("/before", state_of(1)).wait("pfs", timeout_s=60)
        yield place


@pytest.fixture
def store(place: FaultStore) -> Iterator[Store]:
    with place.connect() as store:
        yield store


@pytest.fixture(autouse=True)
def the_daemon_is_as_before(place: FaultStore, store: Store) -> Iterator[None]:
    before = store.status()
    yield
    if any(entry.name == "hostile" for entry in store.ls("/")):
        assert verified(store, "/hostile") == []
        store.rm("/hostile", recursive=True)
    with place.daemon.http() as http:
        assert http.get("/v1/hello", timeout=1.0).status_code == 200
    assert place.daemon.exit_code() is None
    after = until("nothing is left open", lambda: not (now := store.status()).attempts and now.sessions <= before.sessions and now)
    assert (after.memory.lent_bytes, after.memory.held_bytes) == (0, 0)
    assert after.resident_bytes < before.resident_bytes + RESIDENT_SLACK_BYTES
    assert verified(store) == []
    for tier in ("nvme", "pfs"):
        until(f"{tier} holds nothing unfinished", lambda at=tier: not list((place.root(at) / "tmp").iterdir()))  # type: ignore[misc]
    store.save("/after", state_of(2), replace=True).wait("nvme", timeout_s=60)


@pytest.fixture
def client(place: FaultStore) -> Iterator[RawClient]:
    with RawClient(place.daemon) as client:
        yield client


by_either_door = pytest.mark.parametrize("by_socket", [False, True], ids=["by HTTP", "by the session's socket"])


def refusal(response: httpx.Response, status: int | None = None) -> dict[str, Any]:
    """The body of an error response, which names an error of ours and is never a fault of the daemon."""
    body: dict[str, Any] = response.json()
    assert response.status_code >= 400 and "error" in body, response.text
    assert body["error"] != "internal", body
    assert status is None or response.status_code == status, body
    return body


# --- segments ------------------------------------------------------------------------------------------------------------------------


def test_a_segment_can_be_neither_cut_nor_grown(place: FaultStore, client: RawClient, tmp_path: Path) -> None:
    content = part_file(MIB)
    opened, _ = client.stage("/hostile/cut", content)
    found = 0
    for path in Path(f"/proc/{place.daemon.pid}/fd").iterdir():
        try:
            if "memfd" not in str(path.readlink()):
                continue
            segment = os.open(path, os.O_RDWR)
        except FileNotFoundError:  # closed since it was listed
            continue
        found += 1
        for size_bytes in (0, 4096, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(segment, size_bytes)
        os.close(segment)
    assert found
    client.hand_over(opened, len(content))
    assert client.outcome(opened)["state"] == "published"


def test_writing_without_pause_after_handing_over_gives_a_consistent_checkpoint_or_none(store: Store, client: RawClient) -> None:
    """Several blocks, and writers all over them, the header included, while the daemon reads, hashes, writes and drains."""
    content = part_file(24 * MIB)
    published = 0
    for attempt in range(6):
        opened, segment = client.stage(f"/hostile/late-{attempt}", content)
        stop = threading.Event()
        begin = 0 if attempt % 3 == 0 else 8192  # every third attempt also spoils the header

        def scribble(view: memoryview = segment.view, begin: int = begin, stop: threading.Event = stop) -> None:
            array = np.frombuffer(view, np.uint8)
            value = 0
            while not stop.is_set():
                array[begin : len(content) : 509] = value
                value = (value + 1) % 256

        writer = threading.Thread(target=scribble)
        writer.start()
        try:
            assert client.hand_over(opened, len(content)).status_code == 200
            outcome = client.outcome(opened)
            if outcome["state"] == "published":
                published += 1
                store.wait(f"/hostile/late-{attempt}", "pfs", timeout_s=60)
        finally:
            stop.set()
            writer.join()
        assert outcome["state"] == "published" or begin == 0, outcome
        if outcome["state"] == "published":
            assert [line.tier for line in store.verify(f"/hostile/late-{attempt}") if line.problem and line.tier != "memory"] == []
    assert published >= 4


@by_either_door
def test_another_sessions_segment_cannot_be_had_or_handed_over(place: FaultStore, client: RawClient, by_socket: bool) -> None:
    client.by_socket = by_socket
    content = part_file(MIB)
    opened, _ = client.stage("/hostile/mine", content)
    with RawClient(place.daemon, by_socket=by_socket) as thief:
        with pytest.raises(Exception, match="segment"):
            thief.segment(opened)
        refusal(thief.hand_over(opened, len(content)), 404)
        own, _ = thief.stage("/hostile/own", content)
        stolen = {"segment_id": opened["segment"]["segment_id"], "generation": opened["segment"]["generation"]}
        refusal(thief.hand_over(own, len(content), **stolen), 400)
        thief.abort(own)
    client.hand_over(opened, len(content))
    assert client.outcome(opened)["state"] == "published"


def test_a_session_id_that_is_made_up_is_refused(client: RawClient) -> None:
    for session in (b"", b"x", b"0" * 32, b"tcp-" + b"0" * 24, "é".encode()):
        response = client.http.post("/v1/attempts", json={}, headers={b"x-ckptstore-session": session})
        assert response.status_code in (400, 401)


@by_either_door
def test_handing_over_twice_changes_nothing(store: Store, client: RawClient, by_socket: bool) -> None:
    client.by_socket = by_socket
    content = part_file(MIB)
    opened, segment = client.stage("/hostile/twice", content)
    assert client.hand_over(opened, len(content)).status_code == 200
    segment.view[:16] = bytes(16)
    refusal(client.hand_over(opened, len(content)))
    refusal(client.hand_over(opened, 16))
    outcome = client.outcome(opened)
    refusal(client.hand_over(opened, len(content)))
    if outcome["state"] == "aborted":  # its late write came before the bytes were looked at: without a header they are no file
        return
    # It may have come after they were hashed; then what the memory holds is damaged, and only that.
    late = verified(store, "/hostile/twice")
    assert [(line.tier, line.repaired) for line in late] in ([], [("memory", True)])


@by_either_door
def test_another_ranks_slot_cannot_be_handed_over(client: RawClient, by_socket: bool) -> None:
    client.by_socket = by_socket
    content = part_file(MIB)
    token = secrets.token_hex(8)
    first, _ = client.stage("/hostile/ranks", content, token=token, world_size=2)
    second, _ = client.stage("/hostile/ranks", content, token=token, world_size=2, rank=1)
    grant = {"segment_id": second["segment"]["segment_id"], "generation": second["segment"]["generation"]}
    refusal(client.hand_over(first, len(content), **grant), 400)
    refusal(client.hand_over(first, len(content), rank=7), 404)
    refusal(client.hand_over(first, len(content), rank=-1))
    client.abort(first)
    refusal(client.hand_over(second, len(content), rank=1), 410)


@by_either_door
def test_an_old_generation_of_a_slot_is_refused(client: RawClient, by_socket: bool) -> None:
    client.by_socket = by_socket
    content = part_file(MIB)
    opened, _ = client.stage("/hostile/generation", content)
    for generation in (opened["segment"]["generation"] - 1, opened["segment"]["generation"] + 1, -1, 1 << 70):
        refusal(client.hand_over(opened, len(content), generation=generation), 400)
    client.abort(opened)


# --- sizes and content ---------------------------------------------------------------------------------------------------------------


def header_of(length: int, text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text + data


def tensor(start: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


def file_of(header: dict[str, Any], data_bytes: int, *, state: Any = None) -> bytes:
    document = json.dumps({"format": PART_FORMAT, "state": {"w": {"$numpy": "w"}} if state is None else state})
    text = json.dumps({"__metadata__": {"ckptstore": document}} | header).encode()
    return header_of(len(text), text, bytes(data_bytes))


def part_of(state: Any) -> bytes:
    return file_of({"w": tensor(0, 64)}, 64, state=state)


BAD_FILES: dict[str, Callable[[], bytes]] = {
    "nothing but zeros": lambda: bytes(4096),
    "one byte": lambda: b"x",
    "random": lambda: bytes(range(256)) * 64,
    "length beyond the file": lambda: header_of(1 << 20, b"{}"),
    "length that overflows": lambda: header_of((1 << 64) - 1, b"{}"),
    "length of 100 MB and no more": lambda: header_of(100_000_000, b"{}"),
    "no JSON": lambda: header_of(4, b"{,,}"),
    "no object": lambda: header_of(2, b"[]"),
    "no UTF-8": lambda: header_of(4, b'{"\xff'),
    "negative offsets": lambda: file_of({"w": {"dtype": "U8", "shape": [64], "data_offsets": [-64, 0]}}, 64),
    "offsets backwards": lambda: file_of({"w": {"dtype": "U8", "shape": [64], "data_offsets": [64, 0]}}, 64),
    "offsets beyond the file": lambda: file_of({"w": tensor(0, 65)}, 64),
    "overlapping": lambda: file_of({"w": tensor(0, 64), "v": tensor(32, 96)}, 96),
    "a hole": lambda: file_of({"w": tensor(0, 32), "v": tensor(64, 96)}, 96),
    "bytes left over": lambda: file_of({"w": tensor(0, 32)}, 64),
    "negative shape": lambda: file_of({"w": tensor(0, 64, [-64])}, 64),
    "huge shape": lambda: file_of({"w": tensor(0, 64, [1 << 62, 1 << 62])}, 64),
    "huge number": lambda: file_of({"w": {"dtype": "U8", "shape": [64], "data_offsets": [0, 10**4000]}}, 64),
    "unknown dtype": lambda: file_of({"w": tensor(0, 64, dtype="PICKLE")}, 64),
    "NaN": lambda: file_of({"w": {"dtype": "U8", "shape": [float("nan")], "data_offsets": [0, 64]}}, 64),
    "a thousand dimensions": lambda: file_of({"w": tensor(0, 1, [1] * 1000)}, 1),
    "deep JSON": lambda: header_of(200_000, b"[" * 100_000 + b"]" * 100_000),
    "deep object": lambda: header_of(600_000, b'{"a":' * 100_000 + b"{" + b"}" * 100_000),
    "no part document": lambda: header_of(2, b"{}"),
    "part: no JSON": lambda: file_of({"w": tensor(0, 64)}, 64).replace(b"$numpy", b'"$nump'),
    "part: unknown tag": lambda: part_of({"w": {"$exec": "import os"}}),
    "part: a tensor that is not there": lambda: part_of({"w": {"$numpy": "v"}}),
    "part: a tensor that is no name": lambda: part_of({"w": {"$numpy": ["w"]}}),
    "part: deep": lambda: part_of(json.loads("[" * 500 + "]" * 500)),
    "part: another format": lambda: header_of(52, b'{"__metadata__":{"ckptstore":"{\\"format\\":\\"x\\"}"}}  '),
}


@pytest.mark.parametrize("content", BAD_FILES)
def test_a_file_that_is_none_ends_its_attempt_and_nothing_else(store: Store, client: RawClient, content: str) -> None:
    data = BAD_FILES[content]()
    opened, _ = client.stage(f"/hostile/{content.replace(' ', '-').replace(':', '')}", data)
    assert client.hand_over(opened, len(data)).status_code == 200
    outcome = client.outcome(opened)
    assert outcome["state"] == "aborted", outcome
    assert "fault in the daemon" not in outcome["reason"]
    with pytest.raises(NotFound):
        store.stat(outcome["path"])


def many_tensors(size_bytes: int) -> bytes:
    """A header of as many empty tensors as fit, and a byte of data too many."""
    member = b'"%07d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    return b"{" + b"".join(member % number for number in range(size_bytes // len(member % 0)))[:-1] + b"}"


def one_string(size_bytes: int) -> bytes:
    return b'{"__metadata__":{"ckptstore":"' + b"x" * (size_bytes - 40) + b'"}}'


@pytest.mark.parametrize(
    ("text", "size_mb"),
    [(one_string, 99), (many_tensors, 20), pytest.param(many_tensors, 99, marks=pytest.mark.soak)],
)
def test_a_hundred_megabytes_of_json_keep_nobody_waiting(
    place: FaultStore, client: RawClient, text: Callable[[int], bytes], size_mb: int
) -> None:
    """The largest header that the format allows (the memory that it took is looked at afterwards); others are served meanwhile."""
    header = text(size_mb * 1_000_000)
    data = header_of(len(header), header, b"x")
    opened, _ = client.stage("/hostile/json", data)
    assert client.hand_over(opened, len(data)).status_code == 200
    with place.daemon.http() as http:
        while client.attempt(opened)["state"] not in ("published", "aborted"):
            assert http.get("/v1/hello", timeout=5.0).status_code == 200
    assert client.attempt(opened)["state"] == "aborted"


@pytest.mark.parametrize("claimed", ["smaller", "larger", "beyond the slot", "zero", "negative", "absurd"])
def test_a_wrong_size_is_refused_or_ends_the_attempt(client: RawClient, claimed: str) -> None:
    content = part_file(MIB)
    opened, segment = client.stage(f"/hostile/{claimed.replace(' ', '-')}", content)
    sizes = {
        "smaller": len(content) - 1,
        "larger": len(content) + 1,
        "beyond the slot": segment.capacity_bytes + 1,
        "zero": 0,
        "negative": -1,
        "absurd": 1 << 80,
    }
    response = client.hand_over(opened, sizes[claimed])
    if response.status_code == 200:
        assert claimed in ("smaller", "larger")
        assert client.outcome(opened)["state"] == "aborted"
    else:
        refusal(response, 400)
        client.abort(opened)


@pytest.mark.parametrize("size_bytes", [1 << 40, 1 << 62, (1 << 63) - 1, 1 << 64, 1 << 200])
def test_asking_for_more_memory_than_there_is_is_refused_at_once(client: RawClient, size_bytes: int) -> None:
    for on_busy in ("wait", "skip", "fail"):
        refusal(client.join("/hostile/memory", size_bytes=size_bytes, on_busy=on_busy))


# --- attempts ------------------------------------------------------------------------------------------------------------------------


def test_what_was_not_stored_cannot_be_committed(store: Store, client: RawClient) -> None:
    checkpoint = client.opened("/hostile/empty-checkpoint")
    refusal(client.http.post(f"/v1/attempts/{checkpoint['attempt_id']}/commit"))
    file = client.opened("/hostile/empty-file", kind="file", size_bytes=0)
    refusal(client.http.post(f"/v1/attempts/{file['attempt_id']}/commit"))
    for opened in (checkpoint, file):
        assert client.attempt(opened)["state"] == "open"
    client.hang_up()
    until("a hang-up ends them", lambda: not store.status().attempts)


def test_a_commit_that_is_refused_can_be_made_good(store: Store, client: RawClient) -> None:
    opened = client.opened("/hostile/late-file", kind="file", size_bytes=0)
    url = f"/v1/attempts/{opened['attempt_id']}"
    refusal(client.http.post(f"{url}/commit"))
    assert client.http.put(f"{url}/files", params={"name": ""}, content=b"now").status_code == 200
    assert client.http.post(f"{url}/commit").json()["state"] == "published"


def test_a_checkpoint_takes_no_files_and_a_file_only_its_own(client: RawClient) -> None:
    checkpoint = client.opened("/hostile/no-files")
    file = client.opened("/hostile/one-file", kind="file", size_bytes=0)
    for opened in (checkpoint, file):
        for name in ("x", "rank-00001-of-00002.safetensors", "../x", "checkpoint.json"):
            response = client.http.put(f"/v1/attempts/{opened['attempt_id']}/files", params={"name": name}, content=b"x")
            refusal(response, 400)
    refusal(client.http.put(f"/v1/attempts/{checkpoint['attempt_id']}/files", params={"name": ""}, content=b"x"), 400)
    for opened in (checkpoint, file):
        client.abort(opened)


def test_an_attempt_that_is_over_takes_nothing(client: RawClient) -> None:
    opened = client.opened("/hostile/over", kind="folder", size_bytes=0)
    url = f"/v1/attempts/{opened['attempt_id']}"
    assert client.http.put(f"{url}/files", params={"name": "a"}, content=b"x").status_code == 200
    assert client.http.post(f"{url}/commit").status_code == 200
    assert client.outcome(opened)["state"] == "published"
    refusal(client.http.put(f"{url}/files", params={"name": "b"}, content=b"x"))
    refusal(client.http.put(f"{url}/files", params={"name": "a"}, content=b"y"))
    refusal(client.abort(opened))
    client.http.post(f"{url}/commit")
    assert client.attempt(opened)["state"] == "published"


def test_a_published_file_cannot_be_stored_again_with_other_bytes(store: Store, client: RawClient, tmp_path: Path) -> None:
    opened = client.opened("/hostile/again", kind="folder", size_bytes=0)
    url = f"/v1/attempts/{opened['attempt_id']}"
    assert client.http.put(f"{url}/files", params={"name": "a"}, content=b"first").status_code == 200
    client.http.put(f"{url}/files", params={"name": "a"}, content=b"second")
    assert client.http.put(f"{url}/files", params={"name": "a"}, content=b"first").status_code == 200
    assert client.http.post(f"{url}/commit").status_code == 200
    assert (store.get("/hostile/again", tmp_path / "got") / "a").read_bytes() == b"first"


def test_the_id_of_an_open_attempt_is_told_to_its_ranks_alone(place: FaultStore, client: RawClient) -> None:
    opened = client.opened("/hostile/secret")
    with RawClient(place.daemon) as other:
        shown = [other.http.get(url).text for url in ("/v1/status", "/metrics", "/v1/entries?path=/", "/v1/entries?path=/hostile")]
        assert not any(opened["attempt_id"] in text for text in shown)
        guess = opened["attempt_id"][:-1] + ("0" if opened["attempt_id"][-1] != "0" else "1")
        refusal(other.http.post(f"/v1/attempts/{guess}/abort", json={"reason": "x"}), 404)
    assert client.attempt(opened)["state"] == "open"
    client.abort(opened)


def test_a_second_process_that_claims_a_rank_is_refused(place: FaultStore, client: RawClient) -> None:
    token = secrets.token_hex(8)
    opened = client.opened("/hostile/rank", token=token)
    with RawClient(place.daemon) as twin:
        refusal(twin.join("/hostile/rank", token=token))
        refusal(twin.join("/hostile/rank", token=token, world_size=2, rank=1))
    assert client.attempt(opened)["state"] == "open"
    client.abort(opened)


# --- hanging up ----------------------------------------------------------------------------------------------------------------------


def join_only(client: RawClient, place: FaultStore) -> None:
    client.opened("/hostile/hang-up")


def slot_asked_for(client: RawClient, place: FaultStore) -> None:
    client.segment(client.opened("/hostile/hang-up"))


def half_copied(client: RawClient, place: FaultStore) -> None:
    opened = client.opened("/hostile/hang-up", size_bytes=4 * MIB)
    client.segment(opened).view[: 2 * MIB] = bytes(2 * MIB)


def two_of_three_ranks(client: RawClient, place: FaultStore) -> None:
    content, token = part_file(MIB), secrets.token_hex(8)
    for rank in (0, 1):
        opened, _ = client.stage("/hostile/hang-up", content, token=token, world_size=3, rank=rank)
        if rank == 0:
            client.hand_over(opened, len(content), rank=rank)


def folder_opened(client: RawClient, place: FaultStore) -> None:
    client.opened("/hostile/hang-up", kind="folder", size_bytes=0)


def file_stored(client: RawClient, place: FaultStore) -> None:
    opened = client.opened("/hostile/hang-up", kind="folder", size_bytes=0)
    client.http.put(f"/v1/attempts/{opened['attempt_id']}/files", params={"name": "a"}, content=bytes(MIB))


def commit_refused(client: RawClient, place: FaultStore) -> None:
    opened = client.opened("/hostile/hang-up", kind="file", size_bytes=0)
    refusal(client.http.post(f"/v1/attempts/{opened['attempt_id']}/commit"))


def body_cut_off(client: RawClient, place: FaultStore) -> None:
    """A file's body ends in the middle, with the connection."""
    opened = client.opened("/hostile/hang-up", kind="folder", size_bytes=0)
    request = [
        f"PUT /v1/attempts/{opened['attempt_id']}/files?name=a HTTP/1.1",
        "host: x",
        f"content-length: {MIB}",
        f"x-ckptstore-session: {client.descriptors.session}",
    ]
    raw_http(place, "\r\n".join([*request, "", ""]).encode() + bytes(MIB // 2))


def request_cut_off(client: RawClient, place: FaultStore) -> None:
    raw_http(place, b"POST /v1/attempts HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
    raw_http(place, b"POST /v1/att")
    raw_http(place, b"\x16\x03\x01\x02\x00\x01\x00\x01")
    client.opened("/hostile/hang-up")


def raw_http(place: FaultStore, data: bytes) -> None:
    with place.daemon.http() as http, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(http._transport._pool._uds)  # type: ignore[attr-defined]
        connection.sendall(data)


@pytest.mark.parametrize(
    "step",
    [
        join_only,
        slot_asked_for,
        half_copied,
        two_of_three_ranks,
        folder_opened,
        file_stored,
        commit_refused,
        body_cut_off,
        request_cut_off,
    ],
    ids=lambda step: step.__name__,
)
def test_hanging_up_at_any_step_leaves_nothing(
    place: FaultStore, store: Store, client: RawClient, step: Callable[[RawClient, FaultStore], None]
) -> None:
    before = {entry.path for entry in store.ls("/")}
    assert "/hostile" not in before
    step(client, place)
    client.hang_up()
    until("the attempt has ended", lambda: not store.status().attempts)
    assert {entry.path for entry in store.ls("/")} == before
    for tier in ("nvme", "pfs"):
        until("its bytes are gone", lambda at=tier: not list((place.root(at) / "objects/hostile").glob("hang-up*")))  # type: ignore[misc]


def test_hanging_up_after_handing_over_loses_nothing(store: Store, place: FaultStore) -> None:
    content = part_file(8 * MIB)
    client = RawClient(place.daemon)
    opened, _ = client.stage("/hostile/orphan", content)
    assert client.hand_over(opened, len(content)).status_code == 200
    client.hang_up()
    until("it is published", lambda: any(entry.path == "/hostile" for entry in store.ls("/")))
    store.wait("/hostile/orphan", "pfs", timeout_s=60)
    assert bool((store.load("/hostile/orphan")["w"] == 7).all())


def test_a_client_that_never_stops_sending_or_never_reads_holds_up_nobody(place: FaultStore, client: RawClient) -> None:
    """Idle connections, half requests and garbage, a hundred of them, on both sockets."""
    held: list[socket.socket] = []
    try:
        for number in range(100):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(5.0)
            connection.connect(str(client.fd_socket if number % 2 else read_api_socket(place)))
            connection.sendall((b"", b"{", b"\x00" * 100, b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n" * 20)[number % 4])
            held.append(connection)
        with place.daemon.http() as http:
            assert http.get("/v1/hello", timeout=1.0).status_code == 200
        with RawClient(place.daemon) as other:
            other.abort(other.opened("/hostile/beside"))
    finally:
        for connection in held:
            connection.close()


def read_api_socket(place: FaultStore) -> Path:
    with place.daemon.http() as http:
        return Path(http._transport._pool._uds)  # type: ignore[attr-defined]
