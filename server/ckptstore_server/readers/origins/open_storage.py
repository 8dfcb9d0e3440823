"""Which storage does a URL mean, and what may be said of it? `s3://`, a folder's path or `file://`, else whatever fsspec knows.

Credentials are the name of a profile: secrets are neither in the catalog nor in a URL. The profile is looked up on each node, and again
when the server refuses what was found there.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ckptstore.catalog.model import Attachment
from ckptstore.errors import InvalidInput
from ckptstore_server.readers.origins.storage import Storage

S3_SCHEMES = ("s3", "s3a")
FOLDER_SCHEMES = ("", "file", "local")
#: Options by which backends of fsspec take secrets.
_SECRETS = ("secret", "password", "passwd", "key", "token", "credential", "connection_string", "sas")


def open_storage(attachment: Attachment) -> Storage:
    """InvalidInput or ConfigInvalid for a URL or an option that nobody understands; nothing is asked of the storage yet."""
    url, options = attachment.url, json.loads(attachment.options)
    scheme = _scheme(url)
    if scheme in S3_SCHEMES:
        # Imported when one is attached: botocore costs a quarter of a second.
        from ckptstore_server.readers.origins.s3 import S3Storage
        from ckptstore_tiers.s3_options import read_s3_place

        profile = {"profile": attachment.credentials} if attachment.credentials else {}
        return S3Storage(*read_s3_place(url, options | profile, operation="attach", subject=attachment.path))
    if attachment.credentials:
        raise _refused(attachment, f"credentials are taken for s3:// only, not for {scheme or 'a folder'}", "use the daemon's environment")
    from ckptstore_server.readers.origins.bounded import BoundedStorage

    if scheme in FOLDER_SCHEMES:
        from ckptstore_server.readers.origins.folder import FolderStorage

        if options:
            raise _refused(attachment, f"a folder takes no option {min(options)!r}")
        return BoundedStorage(FolderStorage(folder_of(attachment)))
    for name in options:
        if any(part in name.lower() for part in _SECRETS):
            raise _refused(attachment, f"the option {name!r} looks like a secret, which would be kept", "use the daemon's environment")
    from ckptstore_server.readers.origins.fsspec_storage import FsspecStorage

    return BoundedStorage(FsspecStorage(url, options))


def is_folder(attachment: Attachment) -> bool:
    return _scheme(attachment.url) in FOLDER_SCHEMES


def folder_of(attachment: Attachment) -> Path:
    """The absolute path of an attached folder."""
    url = attachment.url
    path = unquote(urlsplit(url).path) if "://" in url else url
    if not path.startswith("/") or ".." in Path(path).parts or ("://" in url and urlsplit(url).netloc):
        raise _refused(attachment, "a folder is named by its absolute path, or file:///that/path")
    return Path(path)


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


def _refused(attachment: Attachment, why: str, hint: str | None = None) -> InvalidInput:
    return InvalidInput(why, operation="attach", subject=attachment.url, hint=hint)
