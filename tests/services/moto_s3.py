"""moto's S3 on loopback: fast, and able to make faults that a real server will not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from moto.server import ThreadedMotoServer


def _one_condition_at_a_time(app: Callable[..., Any]) -> Callable[..., Any]:
    """moto looks whether a condition holds, and stores then: two requests at once may both find that it does. S3 lets one of them."""
    lock = threading.Lock()

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        if "HTTP_IF_NONE_MATCH" not in environ:
            return app(environ, start_response)
        with lock:
            return app(environ, start_response)

    return answer


@contextmanager
def moto_s3(bucket: str) -> Iterator[str]:
    """The endpoint of a server that has this bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    server._server.app = _one_condition_at_a_time(server._server.app)
    try:
        host, port = server.get_host_and_port()
        httpx.put(f"http://{host}:{port}/{bucket}", trust_env=False).raise_for_status()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
