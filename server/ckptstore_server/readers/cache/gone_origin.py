"""In the place of an origin that does not answer, or has another version now: what is kept of the version is all there is."""

from __future__ import annotations

from ckptstore.errors import StaleVersion, TierUnavailable
from ckptstore_server.readers.origin import FileVersion


class GoneOrigin:
    def __init__(self, error: StaleVersion | TierUnavailable) -> None:
        self._error = error

    def read_into(self, file: FileVersion, offset_bytes: int, into: memoryview) -> None:
        raise self._error
