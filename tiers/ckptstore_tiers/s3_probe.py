"""What does this S3 server really do? Asked once, by small requests that a good server must refuse.

Servers differ where safety lies: some accept a part whose checksum header is wrong (moto; older Ceph with crc32c), some ignore
conditions on writes. The answers choose how a put is verified and whether a key can be created exclusively. The probe writes only under
`PROBE_FOLDER`, under a fresh name, and removes it.

Measured, CPU seconds a GB: CRC32 0.03 (zlib-ng; 0.17 by the standard library's zlib), MD5 1.36, reading back about 0.3 and as many bytes
again over the wire. MD5 is for servers that know nothing newer (Ceph before Squid).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from dataclasses import dataclass
from typing import Any, Literal

from botocore.exceptions import ClientError
from zlib_ng import zlib_ng

from ckptstore.errors import CkptStoreError, NotFound
from ckptstore_tiers.s3_connection import S3Connection
from ckptstore_tiers.s3_errors import refusal

#: Below the tier's prefix; `list` leaves it out.
PROBE_FOLDER = ".ckptstore-probe/"
_CONTENT = b"ckptstore asks whether this server checks what it is sent"
Checksum = Literal["crc32", "md5", "none"]
Outcome = Literal["done", "refused", "exists"]


@dataclass(frozen=True)
class S3Abilities:
    """`checksum`: the header that the server checks, on whole objects and on parts; `conditional_*`: it honours If-None-Match."""

    checksum: Checksum
    conditional_put: bool
    conditional_complete: bool

    def details(self) -> dict[str, str]:
        unchecked, ignored = (
            "not checked by the server: every put is read back",
            "ignored by the server: looked up before writing",
        )
        return {
            "checksum": unchecked if self.checksum == "none" else f"{self.checksum}, checked by the server",
            "conditional_put": "honoured" if self.conditional_put else ignored,
            "conditional_complete": "honoured" if self.conditional_complete else ignored,
        }


def checksum_of(scheme: Checksum, *pieces: bytes | memoryview) -> dict[str, str]:
    """The parameter of PutObject or UploadPart that lets the server check a body of these pieces."""
    if scheme == "crc32":
        crc = 0
        for piece in pieces:
            crc = zlib_ng.crc32(piece, crc)
        return {"ChecksumCRC32": base64.b64encode(crc.to_bytes(4, "big")).decode()}
    if scheme == "md5":
        md5 = hashlib.md5(usedforsecurity=False)
        for piece in pieces:
            md5.update(piece)
        return {"ContentMD5": base64.b64encode(md5.digest()).decode()}
    return {}


def algorithm_of(scheme: Checksum) -> dict[str, str]:
    """The parameter of CreateMultipartUpload that announces it."""
    return {"ChecksumAlgorithm": "CRC32"} if scheme == "crc32" else {}


def part_of(number: int, answer: dict[str, Any], check: dict[str, str]) -> dict[str, Any]:
    """What CompleteMultipartUpload wants to know of a part: number, ETag, and its CRC where one was sent."""
    return {"PartNumber": number, "ETag": answer["ETag"]} | {
        name: value for name, value in check.items() if name == "ChecksumCRC32"
    }


def probe(connection: S3Connection, *, retry_for_s: float | None = None) -> S3Abilities:
    """Ask the server; TierUnavailable and its like where it does not answer, so that no guess is taken for a fact."""
    return _Probe(connection, retry_for_s).run()


class _Probe:
    def __init__(self, connection: S3Connection, retry_for_s: float | None) -> None:
        self._connection = connection
        self._retry_for_s = retry_for_s
        self._key = f"{PROBE_FOLDER}{os.urandom(16).hex()}"

    def run(self) -> S3Abilities:
        # The first request is a correct one: if it fails, the server or our rights are to blame, not a wrong checksum.
        self._ask("put_object", body=_CONTENT)
        try:
            schemes: tuple[Checksum, ...] = ("crc32", "md5")
            checksum: Checksum = next((scheme for scheme in schemes if self._is_checked(scheme)), "none")
            conditional_put = self._outcome("put_object", body=_CONTENT, IfNoneMatch="*") == "exists"
            return S3Abilities(checksum, conditional_put, self._completes_only_once(checksum))
        finally:
            # After an outage a tiny object may be left, that `list` does not show, and a tiny upload, that nobody sees.
            with contextlib.suppress(CkptStoreError):
                self._connection.delete(self._key)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        name = self._connection.name(self._key)
        return self._connection.ask(
            "probe", self._key, method, Key=name, **{"retry_for_s": self._retry_for_s} | parameters
        )

    def _outcome(self, method: str, *, body: bytes | None = None, **parameters: Any) -> Outcome:
        """What the server does with a request: an outage is neither done nor refused, and is retried, then raised."""

        def request(s3: Any) -> Outcome:
            content = {} if body is None else {"Body": body}
            try:
                getattr(s3, method)(
                    Bucket=self._connection.bucket, Key=self._connection.name(self._key), **parameters, **content
                )
            except ClientError as error:
                outcome = refusal(error)
                if outcome is None:
                    raise
                return outcome
            return "done"

        return self._connection.call("probe", self._key, request, retry_for_s=self._retry_for_s)

    def _is_checked(self, scheme: Checksum) -> bool:
        """Whether the server refuses this header when it is wrong, and takes it when it is right, on objects and on parts."""
        wrong, right = checksum_of(scheme, _CONTENT + b"!"), checksum_of(scheme, _CONTENT)
        if (
            self._outcome("put_object", body=_CONTENT, **wrong) == "done"
            or self._outcome("put_object", body=_CONTENT, **right) != "done"
        ):
            return False
        upload = self._begin(scheme)
        try:
            part = {"UploadId": upload, "PartNumber": 1}
            wrong_outcome = self._outcome("upload_part", body=_CONTENT, **part, **wrong)
            return wrong_outcome != "done" and self._outcome("upload_part", body=_CONTENT, **part, **right) == "done"
        finally:
            self._abort(upload)

    def _completes_only_once(self, checksum: Checksum) -> bool:
        """Whether completing an upload with If-None-Match over an existing key is refused."""
        upload = self._begin(checksum)
        try:
            check = checksum_of(checksum, _CONTENT)
            answer = self._ask("upload_part", UploadId=upload, PartNumber=1, body=_CONTENT, **check)
            done: dict[str, Any] = {"UploadId": upload, "MultipartUpload": {"Parts": [part_of(1, answer, check)]}}
            return self._outcome("complete_multipart_upload", **done, IfNoneMatch="*") == "exists"
        finally:
            self._abort(upload)

    def _begin(self, checksum: Checksum) -> str:
        return str(self._ask("create_multipart_upload", **algorithm_of(checksum))["UploadId"])

    def _abort(self, upload: str) -> None:
        with contextlib.suppress(NotFound):  # completed after all, by a server that ignores the condition
            self._ask("abort_multipart_upload", UploadId=upload)
