"""moto's S3 on loopback: fast, and able to make faults that a real server will not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from moto.server import ThreadedMotoServer


@contextmanager
def moto_s3(bucket: str) -> Iterator[str]:
    """The endpoint of a server that has this bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        httpx.put(f"http://{host}:{port}/{bucket}", trust_env=False).raise_for_status()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
