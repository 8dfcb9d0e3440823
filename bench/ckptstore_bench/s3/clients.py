"""The clients of S3 that are compared: each moves a whole object between the server and ready memory, or a file, as it does it best.

All get the same part size and number of requests at once, where they take one. `get` fills memory that has been touched; `put` sends a
file. What a library offers is used as its documentation says: obstore by ranges from threads (its own `get_ranges` merges neighbours into
one request), the connector for PyTorch by its checkpoint streams, boto3 by its transfer manager with its threads or on the AWS CRT, s3fs
by its ranges and its file transfer. `http.client` is the limit: presigned requests over plain connections, without checksums or retries.
"""

from __future__ import annotations

import http.client
import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config

from ckptstore.config import TierSettings
from ckptstore_tiers.s3_options import read_s3_settings


@dataclass(frozen=True)
class Place:
    """Where all clients work: a bucket, a prefix for their keys, and how they ask for it."""

    settings: TierSettings
    part_bytes: int
    parallel: int

    @property
    def bucket(self) -> str:
        return read_s3_settings(self.settings)[0].bucket

    def key(self, name: str) -> str:
        return read_s3_settings(self.settings)[0].prefix + name

    @property
    def endpoint(self) -> str:
        """As botocore resolves it: by the tier's options, the environment or a profile."""
        return str(self.botocore_client().meta.endpoint_url)

    @property
    def region(self) -> str:
        return str(self.botocore_client().meta.region_name)

    @property
    def credentials(self) -> tuple[str, str, str | None]:
        options = read_s3_settings(self.settings)[1]
        found = botocore.session.Session(profile=options.profile).get_credentials().get_frozen_credentials()
        return found.access_key, found.secret_key, found.token

    def botocore_client(self) -> Any:
        options = read_s3_settings(self.settings)[1]
        session = botocore.session.Session(profile=options.profile)
        region = options.region or session.get_config_variable("region") or "us-east-1"
        style = options.addressing or "path"
        config = Config(s3={"addressing_style": style}, request_checksum_calculation="when_required", max_pool_connections=64)
        return session.create_client("s3", region_name=region, endpoint_url=options.endpoint_url, config=config)

    def ranges(self, size_bytes: int) -> list[tuple[int, int]]:
        return [(start, min(self.part_bytes, size_bytes - start)) for start in range(0, size_bytes, self.part_bytes)]

    def in_threads(self, size_bytes: int, move: Callable[[int, int], object]) -> None:
        with ThreadPoolExecutor(self.parallel) as executor:
            for done in [executor.submit(move, start, length) for start, length in self.ranges(size_bytes)]:
                done.result()


class Client(Protocol):
    def get(self, name: str, buffer: memoryview) -> None: ...
    def put(self, name: str, file: Path) -> None: ...
    def close(self) -> None: ...


class Ckptstore:
    def __init__(self, place: Place) -> None:
        from ckptstore_tiers.s3_tier import S3Tier

        self._tier = S3Tier(place.settings)

    def get(self, name: str, buffer: memoryview) -> None:
        self._tier.open(name).read_into(0, buffer)

    def put(self, name: str, file: Path) -> None:
        from ckptstore_tiers.sources import FileSource

        with file.open("rb") as opened:
            source = FileSource(opened.fileno(), file.stat().st_size)
            try:
                self._tier.put(name, source)
            finally:
                source.close()

    def close(self) -> None:
        self._tier.close()


class PlainHttp:
    """The limit."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._s3 = place.botocore_client()
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def _request(self, operation: str, body: object, headers: dict[str, str], **parameters: Any) -> http.client.HTTPResponse:
        url = urlsplit(self._s3.generate_presigned_url(operation, Params={"Bucket": self._place.bucket, **parameters}))
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = connection or kind(url.hostname or "", url.port, timeout=60, blocksize=1 << 20)
        connection.request("GET" if body is None else "PUT", f"{url.path}?{url.query}", body=body, headers=headers)  # type: ignore[arg-type]
        answer = connection.getresponse()
        if answer.status >= 300:
            raise OSError(f"{operation}: {answer.status}")
        answer.connection = connection  # type: ignore[attr-defined]
        return answer

    def _done(self, answer: http.client.HTTPResponse) -> None:
        answer.read()
        with self._lock:
            self._idle.append(answer.connection)  # type: ignore[attr-defined]

    def get(self, name: str, buffer: memoryview) -> None:
        key = self._place.key(name)

        def move(start: int, length: int) -> None:
            answer = self._request("get_object", None, {"Range": f"bytes={start}-{start + length - 1}"}, Key=key)
            filled = 0
            while filled < length:
                filled += answer.readinto(buffer[start + filled : start + length])
            self._done(answer)

        self._place.in_threads(len(buffer), move)

    def put(self, name: str, file: Path) -> None:
        where = {"Bucket": self._place.bucket, "Key": self._place.key(name)}
        upload = self._s3.create_multipart_upload(**where)["UploadId"]
        parts: list[dict[str, Any]] = []
        with file.open("rb") as opened:

            def move(start: int, length: int) -> None:
                number = start // self._place.part_bytes + 1
                body = os.pread(opened.fileno(), length, start)
                answer = self._request("upload_part", body, {}, Key=where["Key"], UploadId=upload, PartNumber=number)
                parts.append({"PartNumber": number, "ETag": answer.headers["ETag"]})
                self._done(answer)

            self._place.in_threads(file.stat().st_size, move)
        parts.sort(key=lambda part: int(part["PartNumber"]))
        self._s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


class Obstore:
    def __init__(self, place: Place) -> None:
        from obstore.store import S3Store

        access, secret, token = place.credentials
        self._place = place
        self._store = S3Store(
            place.bucket,
            endpoint=place.endpoint,
            region=place.region,
            access_key_id=access,
            secret_access_key=secret,
            client_options={"allow_http": True, "timeout": "120s"},
            **({"session_token": token} if token else {}),  # type: ignore[arg-type]
        )

    def get(self, name: str, buffer: memoryview) -> None:
        import obstore

        key = self._place.key(name)

        def move(start: int, length: int) -> None:
            buffer[start : start + length] = memoryview(obstore.get_range(self._store, key, start=start, length=length))

        self._place.in_threads(len(buffer), move)

    def put(self, name: str, file: Path) -> None:
        import obstore

        with file.open("rb") as opened:
            obstore.put(
                self._store,
                self._place.key(name),
                opened,
                use_multipart=True,
                chunk_size=self._place.part_bytes,
                max_concurrency=self._place.parallel,
            )

    def close(self) -> None:
        """Its threads end with the process."""


class TorchConnector:
    def __init__(self, place: Place) -> None:
        from s3torchconnector import S3Checkpoint, S3ClientConfig

        access, secret, token = place.credentials  # the CRT reads the environment itself
        os.environ |= {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret} | ({"AWS_SESSION_TOKEN": token} if token else {})
        config = S3ClientConfig(force_path_style=True, part_size=place.part_bytes)
        self._checkpoint = S3Checkpoint(place.region, endpoint=place.endpoint, s3client_config=config)
        self._place = place

    def _url(self, name: str) -> str:
        return f"s3://{self._place.bucket}/{self._place.key(name)}"

    def get(self, name: str, buffer: memoryview) -> None:
        filled = 0
        with self._checkpoint.reader(self._url(name)) as reader:
            while filled < len(buffer) and (count := reader.readinto(buffer[filled : filled + self._place.part_bytes])):
                filled += count
        if filled < len(buffer):
            raise OSError(f"{filled} of {len(buffer)} bytes came")

    def put(self, name: str, file: Path) -> None:
        with self._checkpoint.writer(self._url(name)) as writer, file.open("rb", buffering=0) as opened:
            while data := opened.read(self._place.part_bytes):
                writer.write(data)

    def close(self) -> None:
        """Its threads end with the process."""


class _IntoMemory(io.RawIOBase):
    """A file that is written into ready memory: what boto3 downloads into."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer, self._position = buffer, 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset
        return offset

    def write(self, data: Any) -> int:
        self._buffer[self._position : self._position + len(data)] = data
        self._position += len(data)
        return len(data)


class Boto3:
    def __init__(self, place: Place) -> None:
        from s3transfer.manager import TransferConfig, TransferManager

        config = TransferConfig(
            multipart_threshold=place.part_bytes,
            multipart_chunksize=place.part_bytes,
            max_request_concurrency=place.parallel,
            io_chunksize=1 << 20,
        )
        self._manager: Any = TransferManager(place.botocore_client(), config)
        self._place = place

    def get(self, name: str, buffer: memoryview) -> None:
        self._manager.download(self._place.bucket, self._place.key(name), _IntoMemory(buffer)).result()

    def download(self, name: str, file: Path) -> None:
        self._manager.download(self._place.bucket, self._place.key(name), str(file)).result()

    def put(self, name: str, file: Path) -> None:
        self._manager.upload(str(file), self._place.bucket, self._place.key(name)).result()

    def close(self) -> None:
        self._manager.shutdown()


class Boto3Crt(Boto3):
    """boto3's transfers on the CRT; its own switch for that ignores the endpoint, so the manager is made as boto3 makes it."""

    def __init__(self, place: Place) -> None:
        from s3transfer.crt import BotocoreCRTCredentialsWrapper, BotocoreCRTRequestSerializer, CRTTransferManager, create_s3_crt_client

        options = read_s3_settings(place.settings)[1]
        session = botocore.session.Session(profile=options.profile)
        session.set_default_client_config(Config(s3={"addressing_style": "path"}))
        wrapper = BotocoreCRTCredentialsWrapper(session.get_credentials())
        client = create_s3_crt_client(
            place.region,
            crt_credentials_provider=wrapper.to_crt_credentials_provider(),
            part_size=place.part_bytes,
            use_ssl=place.endpoint.startswith("https"),
        )
        serializer = BotocoreCRTRequestSerializer(session, {"region_name": place.region, "endpoint_url": place.endpoint})
        self._manager = CRTTransferManager(client, serializer)
        self._place = place


class S3fs:
    def __init__(self, place: Place) -> None:
        import s3fs

        access, secret, token = place.credentials
        self._fs = s3fs.S3FileSystem(
            key=access, secret=secret, token=token, endpoint_url=place.endpoint, max_concurrency=place.parallel, use_listings_cache=False
        )
        self._place = place

    def _path(self, name: str) -> str:
        return f"{self._place.bucket}/{self._place.key(name)}"

    def get(self, name: str, buffer: memoryview) -> None:
        ranges = self._place.ranges(len(buffer))
        for some in _batches(ranges, self._place.parallel):
            starts = [start for start, _ in some]
            ends = [start + length for start, length in some]
            found = self._fs.cat_ranges([self._path(name)] * len(starts), starts, ends, on_error="raise")
            for start, data in zip(starts, found, strict=True):
                buffer[start : start + len(data)] = data

    def put(self, name: str, file: Path) -> None:
        self._fs.put_file(str(file), self._path(name), chunksize=self._place.part_bytes, max_concurrency=self._place.parallel)

    def close(self) -> None:
        """Its loop ends with the process."""


def _batches(ranges: list[tuple[int, int]], count: int) -> list[list[tuple[int, int]]]:
    return [ranges[at : at + count] for at in range(0, len(ranges), count)]


STORE, LIMIT = "ckptstore", "http.client"
#: name → (class, packages whose versions the report names)
CLIENTS: dict[str, tuple[Callable[[Place], Client], tuple[str, ...]]] = {
    STORE: (Ckptstore, ("botocore",)),
    LIMIT: (PlainHttp, ()),
    "obstore": (Obstore, ("obstore",)),
    "s3torchconnector": (TorchConnector, ("s3torchconnector",)),
    "boto3-crt": (Boto3Crt, ("s3transfer", "awscrt")),
    "boto3": (Boto3, ("s3transfer",)),
    "s3fs": (S3fs, ("s3fs",)),
}
