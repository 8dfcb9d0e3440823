"""One way to an S3 server for everything: a botocore client, its credentials as they rotate, bounded retries, and our errors.

botocore finds credentials, signs, encodes keys and parses answers; bodies go straight between a socket and our buffers (see
`s3_transport`), except behind a proxy, where botocore's own transport carries them too.

Credentials that botocore refreshes by itself (roles, processes) rotate inside it, since it asks for them at every request. Those that
it reads once (environment, profile files) are looked up again when the server refuses them; if they have changed, the request is sent
again with the new ones. No error, log line or repr made here holds a credential.

Retries are stamina's: back-off with jitter, only for what may pass, bounded in time, so that a drain queue with its own back-off
regains control. A connection may be used from several threads.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

import botocore
import botocore.loaders
import botocore.session
import stamina
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ProfileNotFound, ReadTimeoutError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from ckptstore.errors import ConfigInvalid, NotFound
from ckptstore_tiers.s3_errors import FOREIGN, NO_CREDENTIALS, blames_credentials, is_too_much, may_pass, missing_bucket, translated
from ckptstore_tiers.s3_options import S3Options, S3Place
from ckptstore_tiers.s3_transport import Body, DirectTransport
from ckptstore_tiers.s3_window import TransferWindow

T = TypeVar("T")

_LIKE_BACKSLASH = re.compile(r"%(?=(?:25)*5C)")
_NAMED_BACKSLASH = re.compile(r"%(?:25((?:25)*))?5C")
_MAYBE_BACKSLASH = re.compile(r"%(?:25)*[25]?$")

@dataclass(frozen=True)
class StoredObject:
    """What HEAD tells of an object."""

    key: str
    size_bytes: int
    etag: str
    modified_s: float
    metadata: dict[str, str] = field(default_factory=dict)


@cache
def _loader() -> Any:
    """botocore's description of S3, parsed once a process: that is most of what a client costs to make."""
    return botocore.loaders.create_loader()


def _new_session(profile: str | None) -> botocore.session.Session:
    session = botocore.session.Session(profile=profile)
    session.register_component("data_loader", _loader())
    return session


class S3Connection:
    """A bucket's client. `call` is the only door: it retries, renews credentials and translates errors."""

    def __init__(self, tier: str, place: S3Place, options: S3Options) -> None:
        self.tier = tier
        self.bucket = place.bucket
        self.prefix = place.prefix
        self.options = options
        self.window = TransferWindow(tier, options.window)
        self._lock = threading.Lock()
        # At DEBUG botocore writes whole signed requests, session tokens among them. Nothing else of it is silenced.
        botocore_log = logging.getLogger("botocore")
        botocore_log.setLevel(max(botocore_log.level, logging.INFO))
        try:
            self._session = _new_session(options.profile)
            self._credentials = self._read_credentials(self._session)
            self._client = self._new_client(self._session)
            self._transport = self._new_transport()
            self._send_directly(self._client)
        except (BotoCoreError, ValueError) as error:
            hint = "name a profile of ~/.aws/config" if isinstance(error, ProfileNotFound) else None
            raise ConfigInvalid(str(error), operation="open", subject=place.bucket, tier=tier, hint=hint) from error

    @property
    def endpoint_url(self) -> str:
        return str(self._client.meta.endpoint_url)

    @property
    def region(self) -> str:
        return str(self._client.meta.region_name)

    @property
    def where(self) -> str:
        """The place as errors name it."""
        return f"bucket {self.bucket!r} at {self.endpoint_url}"

    def name(self, key: str) -> str:
        """The tier's key as the bucket knows it.

        A backslash travels as `%5C`, since some servers (SeaweedFS) turn it into a slash; what would be mistaken for one, `%5C`
        itself, gets another `25`. All other keys are the same on both sides.
        """
        return self.prefix + _LIKE_BACKSLASH.sub("%25", key).replace("\\", "%5C")

    def key(self, name: str) -> str:
        """The inverse of `name`."""
        return _NAMED_BACKSLASH.sub(
            lambda found: f"%{found[1]}5C" if found[1] is not None else "\\", name[len(self.prefix) :]
        )

    def name_prefix(self, key_prefix: str) -> str:
        """With what every name begins whose key begins with `key_prefix`; a `%` at its end may be the begin of a `%5C`."""
        return self.prefix + _MAYBE_BACKSLASH.sub("", self.name(key_prefix)[len(self.prefix) :])

    def call(self, operation: str, key: str, request: Callable[[Any], T], *, retry_for_s: float | None = None) -> T:
        """`request(client)`, tried again while its failure may pass; then our error, which names operation and key.

        The time for retries runs from the first failure, so that a part that takes long to send still gets its second try. That one
        is made at once: what breaks most often is a connection that the server had closed while it was idle.
        """
        patience_s = self.options.retry_for_s if retry_for_s is None else retry_for_s
        try:
            try:
                return self._try(request)
            except FOREIGN as error:
                if not patience_s or not may_pass(error):
                    raise
            for attempt in stamina.retry_context(
                on=may_pass, attempts=None, timeout=patience_s, wait_initial=0.05, wait_max=2.0, wait_jitter=0.25
            ):
                with attempt:
                    return self._try(request)
        except FOREIGN as error:
            raise translated(error, operation=operation, key=key, tier=self.tier, where=self.where) from error
        raise AssertionError("a retried request either returns or raises")

    def ask(
        self,
        operation: str,
        key: str,
        method: str,
        *,
        body: bytes | Sequence[memoryview] | None = None,
        retry_for_s: float | None = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """One method of botocore's S3 client, with a body out of memory that every try sends from its start."""
        pieces = (body,) if isinstance(body, bytes) else body

        def request(s3: Any) -> dict[str, Any]:
            content = {} if pieces is None else {"Body": Body(*pieces)}
            answer: dict[str, Any] = getattr(s3, method)(Bucket=self.bucket, **parameters, **content)
            return answer

        return self.call(operation, key, request, retry_for_s=retry_for_s)

    def head(self, operation: str, key: str, *, retry_for_s: float | None = None) -> StoredObject:
        """What is stored under `key`; NotFound if nothing is and the bucket exists (HEAD says 404 for both)."""
        try:
            answer = self.ask(operation, key, "head_object", Key=self.name(key), retry_for_s=retry_for_s)
        except NotFound:
            self._require_bucket(operation, key)
            raise
        return StoredObject(
            key,
            int(answer["ContentLength"]),
            answer.get("ETag", ""),
            answer["LastModified"].timestamp(),
            answer.get("Metadata", {}),
        )

    def delete(self, key: str) -> None:
        try:
            self.ask("delete", key, "delete_object", Key=self.name(key))
        except NotFound:
            return  # some servers answer 404 where Amazon answers 204

    def close(self) -> None:
        self._client.close()
        if self._transport is not None:
            self._transport.close()

    def _require_bucket(self, operation: str, key: str) -> None:
        try:
            self.ask(operation, key, "head_bucket")
        except NotFound as error:
            raise missing_bucket(self.where, operation=operation, subject=key, tier=self.tier) from error

    def _try(self, request: Callable[[Any], T]) -> T:
        client = self._client
        try:
            return request(client)
        except ClientError as error:
            if is_too_much(error):
                self.window.refused()
            if not blames_credentials(error) or not self._renewed(client):
                raise
        except ReadTimeoutError:
            self.window.refused()
            raise
        except NO_CREDENTIALS:
            if not self._renewed(client):
                raise
        return request(self._client)

    def _renewed(self, refused: Any) -> bool:
        """Look the credentials up again; True if they are others than those that `refused` signs with."""
        with self._lock:
            if self._client is not refused:
                return True  # another thread has seen the change first
            session = _new_session(self.options.profile)
            found = self._read_credentials(session)
            if found is None or found == self._credentials:
                return False
            # The old client may still serve other threads; its connections go when they are done with it.
            client = self._new_client(session)
            self._send_directly(client)
            self._session, self._credentials, self._client = session, found, client
            return True

    def _new_transport(self) -> DirectTransport | None:
        """One for all clients to come; None behind a proxy."""
        if get_environ_proxies(self.endpoint_url):
            return None
        trusted = None
        if urlsplit(self.endpoint_url).scheme == "https":
            bundle = self._session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
            trusted = ssl.create_default_context(cafile=get_cert_path(bundle or True))
        options = self.options
        return DirectTransport(
            connect_timeout_s=options.connect_timeout_s,
            read_timeout_s=options.read_timeout_s,
            idle_limit=options.parallel + 8,
            trusted=trusted,
        )

    def _send_directly(self, client: Any) -> None:
        if self._transport is not None:
            client.meta.events.register("before-send.s3", self._transport.send)

    @staticmethod
    def _read_credentials(session: botocore.session.Session) -> tuple[str, str, str | None] | None:
        credentials = session.get_credentials()
        if credentials is None:
            return None
        frozen = credentials.get_frozen_credentials()
        return frozen.access_key, frozen.secret_key, frozen.token

    def _new_client(self, session: botocore.session.Session) -> Any:
        region = self.options.region or session.get_config_variable("region") or "us-east-1"

        def build(addressing: str) -> Any:
            config = Config(
                connect_timeout=self.options.connect_timeout_s,
                read_timeout=self.options.read_timeout_s,
                max_pool_connections=self.options.parallel + 8,
                retries={"total_max_attempts": 1},  # stamina retries, in `call`
                # The one that botocore puts together anew for each request costs a fifth of all that it does for it.
                user_agent=f"ckptstore Botocore/{botocore.__version__}",
                # A hash of the body in the signature costs a second pass; the checksum header protects the bytes.
                s3={"addressing_style": addressing, "payload_signing_enabled": False},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            return session.create_client(
                "s3", region_name=region, endpoint_url=self.options.endpoint_url, config=config
            )

        if self.options.addressing is not None:
            return build(self.options.addressing)
        if self.options.endpoint_url is not None:
            return build("path")
        client = build("virtual")
        host = urlsplit(client.meta.endpoint_url).hostname or ""
        return client if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else build("path")
