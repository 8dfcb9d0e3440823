"""How do local files get into the store? One attempt of one rank: opened, filled with the files, committed; what fails ends it.

Durable at return: the files, in some durable tier; published a moment later.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ckptstore.errors import Busy
from ckptstore.wire import AttemptOpened, AttemptStatus, OpenAttempt
from ckptstore_client.connection import Connection
from ckptstore_client.files import Progress, files_to_put, store_files
from ckptstore_client.process_group import ProcessGroup
from ckptstore_client.saving import BUSY_PAUSE_S, BUSY_TIMEOUT_S, abort_quietly
from ckptstore_client.transport import Transport


def put_files(
    connection: Connection,
    group: ProcessGroup,
    source: Path,
    path: str,
    *,
    replace: bool,
    metadata: dict[str, Any],
    progress: Progress | None,
) -> AttemptOpened:
    """Put a file, or a folder with all its files, to `path`. Arguments are checked."""
    files = files_to_put(source)
    member = group.next_put(path)
    message = OpenAttempt(
        path=path,
        token=member.token,
        ordinal=member.ordinal,
        rank=0,
        world_size=1,
        kind="file" if "" in files else "folder",
        size_bytes=0,
        replace=replace,
        metadata=metadata,
    )
    transport, opened = _opened(connection, message)
    try:
        store_files(transport, opened.attempt_id, files, progress)
        transport.api.call("POST", f"attempts/{opened.attempt_id}/commit", AttemptStatus)
    except BaseException as error:
        abort_quietly(transport, opened.attempt_id, f"the put failed: {error!s:.500}")
        raise
    return opened


def _opened(connection: Connection, message: OpenAttempt) -> tuple[Transport, AttemptOpened]:
    """While more waits to be drained than the daemon lets wait, wait, too; Busy if that takes longer than a save would wait."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            return connection.run(lambda t: (t, t.api.call("POST", "attempts", AttemptOpened, message)))
        except Busy:
            if time.monotonic() > deadline:
                raise
        time.sleep(BUSY_PAUSE_S)
