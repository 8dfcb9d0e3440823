"""What does an object store do by itself? Plain botocore for S3, plain fsspec for other URLs, by a few lines.

S3: one multipart upload with so many parts at once, and ranged GETs into ready memory. No checksums, no look before and after, no retries
but botocore's own. Other URLs have one way to write, so a setting changes only how they are read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import botocore.exceptions
import botocore.session
import fsspec
from botocore.config import Config

from ckptstore.config import TierSettings
from ckptstore.errors import TierUnavailable
from ckptstore_bench.tiers.contender import SMALL_BYTES, Setting, Timing, in_threads, pieces_of
from ckptstore_tiers.s3_options import SCHEMES, read_s3_settings

FOREIGN = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, OSError)


def object_device(settings: TierSettings) -> BucketDevice | UrlDevice:
    return BucketDevice(settings) if urlsplit(settings.url or "").scheme in SCHEMES else UrlDevice(settings)


class _ObjectDevice:
    """What both kinds share: timing, and errors that name the tier."""

    def __init__(self, settings: TierSettings) -> None:
        self._tier = settings.name
        self._where = settings.url or ""
        self._size_bytes = 0

    def can(self, setting: Setting) -> bool:
        return True

    def write(self, data: memoryview, setting: Setting) -> Timing:
        began_s = time.perf_counter()
        try:
            latencies_s = self._put("device.write", data, setting)
            seconds = time.perf_counter() - began_s
            self._delete("device.write")
        except FOREIGN as error:
            raise self._translated(error, "write") from error
        return Timing(seconds, len(data), latencies_s)

    def prepare(self, data: memoryview) -> None:
        try:
            self._put("device.read", data, Setting(16 << 20, 4))
        except FOREIGN as error:
            raise self._translated(error, "write") from error
        self._size_bytes = len(data)

    def read(self, setting: Setting) -> Timing:
        return self._read(setting.threads, pieces_of(self._size_bytes, setting.block_bytes))

    def random_reads(self, offsets: Sequence[int], threads: int, direct: bool | None) -> Timing:
        return self._read(threads, [(offset, offset + SMALL_BYTES) for offset in offsets])

    def _read(self, threads: int, pieces: Sequence[tuple[int, int]]) -> Timing:
        try:
            return in_threads(threads, pieces, lambda start, stop, buffer: self._get("device.read", start, buffer))
        except FOREIGN as error:
            raise self._translated(error, "read") from error

    def small_writes(self, count: int) -> Timing:
        latencies_s, data = [], memoryview(os.urandom(SMALL_BYTES))
        try:
            for _ in range(count):
                began_s = time.perf_counter()
                self._put("device.small", data, Setting(SMALL_BYTES * 2, 1))
                latencies_s.append(time.perf_counter() - began_s)
            self._delete("device.small")
        except FOREIGN as error:
            raise self._translated(error, "write") from error
        return Timing(sum(latencies_s), count * SMALL_BYTES, tuple(latencies_s))

    def close(self) -> None:
        if self._size_bytes:
            try:
                self._delete("device.read")
            except FOREIGN as error:
                raise self._translated(error, "delete") from error

    def _translated(self, error: Exception, operation: str) -> TierUnavailable:
        return TierUnavailable(str(error), operation=f"bench: {operation}", subject=self._where, tier=self._tier)

    def _put(self, name: str, data: memoryview, setting: Setting) -> tuple[float, ...]:
        raise NotImplementedError

    def _get(self, name: str, start: int, buffer: memoryview) -> None:
        raise NotImplementedError

    def _delete(self, name: str) -> None:
        raise NotImplementedError


class BucketDevice(_ObjectDevice):
    def __init__(self, settings: TierSettings) -> None:
        super().__init__(settings)
        place, options = read_s3_settings(settings)
        self._bucket, self._prefix = place.bucket, place.prefix
        style = options.addressing or ("path" if options.endpoint_url or os.environ.get("AWS_ENDPOINT_URL") else "virtual")
        config = Config(
            max_pool_connections=64,
            s3={"addressing_style": style, "payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        session = botocore.session.Session(profile=options.profile)
        region = options.region or session.get_config_variable("region") or "us-east-1"
        self._s3 = session.create_client("s3", region_name=region, endpoint_url=options.endpoint_url, config=config)

    def _put(self, name: str, data: memoryview, setting: Setting) -> tuple[float, ...]:
        place = {"Bucket": self._bucket, "Key": self._prefix + name}
        if len(data) <= setting.block_bytes:
            self._s3.put_object(**place, Body=bytes(data))
            return ()
        upload = self._s3.create_multipart_upload(**place)["UploadId"]
        etags: dict[int, str] = {}

        def send(start: int, stop: int, buffer: memoryview) -> None:
            number = start // setting.block_bytes + 1
            answer = self._s3.upload_part(**place, UploadId=upload, PartNumber=number, Body=bytes(data[start:stop]))
            etags[number] = answer["ETag"]

        try:
            sent = in_threads(setting.threads, pieces_of(len(data), setting.block_bytes), send)
            parts: list[dict[str, Any]] = [{"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)]
            self._s3.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
        except BaseException:
            self._s3.abort_multipart_upload(**place, UploadId=upload)
            raise
        return sent.latencies_s

    def _get(self, name: str, start: int, buffer: memoryview) -> None:
        wanted = f"bytes={start}-{start + len(buffer) - 1}"
        body = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + name, Range=wanted)["Body"]
        filled = 0
        while filled < len(buffer):
            found = body.readinto(buffer[filled:])
            if not found:
                raise OSError("the answer ends too soon")
            filled += found

    def _delete(self, name: str) -> None:
        self._s3.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def close(self) -> None:
        super().close()
        self._s3.close()


class UrlDevice(_ObjectDevice):
    def __init__(self, settings: TierSettings) -> None:
        super().__init__(settings)
        self._fs, self._root = fsspec.core.url_to_fs(settings.url, **settings.options)
        self._fs.makedirs(self._root, exist_ok=True)

    def _put(self, name: str, data: memoryview, setting: Setting) -> tuple[float, ...]:
        self._fs.pipe_file(f"{self._root}/{name}", bytes(data))
        return ()

    def _get(self, name: str, start: int, buffer: memoryview) -> None:
        buffer[:] = self._fs.cat_file(f"{self._root}/{name}", start, start + len(buffer))

    def _delete(self, name: str) -> None:
        self._fs.rm_file(f"{self._root}/{name}")
