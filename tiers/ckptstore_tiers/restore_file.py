"""`python -m ckptstore_tiers.restore_file STORED DESTINATION`: the content of one stored file, without a daemon, catalog or configuration.

For a tier's file in whatever form it is: plain, zstd or float. The content is not compared with the catalog's checksums, which are
elsewhere. The destination must not exist; after an error it does not.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path

from ckptstore.errors import CkptStoreError
from ckptstore_tiers.checksums import BLOCK_BYTES
from ckptstore_tiers.codecs_reader import LARGEST_FRAME_BYTES, open_content
from ckptstore_tiers.posix_errors import translated
from ckptstore_tiers.posix_read import PosixReader
from ckptstore_tiers.scratch import ScratchPool


def restore_file(stored: Path, destination: Path) -> None:
    subject = str(stored)
    with translated("open", subject, "file"):
        folder = os.open(stored.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            plain = PosixReader(subject, stored.name, dir_fd=folder, tier="file", direct=False)
        finally:
            os.close(folder)
    frames, blocks = ScratchPool(size_bytes=LARGEST_FRAME_BYTES), ScratchPool()
    with (
        closing(open_content(plain, None, key=subject, tier="file", frames=frames, blocks=blocks)) as reader,
        translated("put", str(destination), "file"),
        destination.open("xb") as file,
        blocks.borrow() as scratch,
    ):
        try:
            for start in range(0, reader.size_bytes, BLOCK_BYTES):
                block = scratch[: min(BLOCK_BYTES, reader.size_bytes - start)]
                reader.read_into(start, block)
                file.write(block)
        except BaseException:
            destination.unlink()
            raise


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m ckptstore_tiers.restore_file STORED DESTINATION")
    try:
        restore_file(Path(sys.argv[1]), Path(sys.argv[2]))
    except CkptStoreError as error:
        raise SystemExit(f"ckptstore: {error}") from error


if __name__ == "__main__":
    main()
