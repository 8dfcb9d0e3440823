"""How does the client speak to a daemon? One httpx pool per daemon, typed answers, and errors that arrive as their own classes.

Over the unix socket or TCP it is the same API (`ckptstore.wire`). What httpx raises is translated here, once: nobody answered, or
the connection broke, is DaemonUnavailable; no answer in time is WaitTimeout. Nothing is repeated here: whether a request may be
sent again is known where it is made.

Thread-safe, as httpx.Client is. Not for a forked child: `Store` opens a new one there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from ckptstore.errors import CkptStoreError, DaemonUnavailable, WaitTimeout, from_wire
from ckptstore.wire import SESSION_HEADER, Message

Answer = TypeVar("Answer", bound=Message)
#: Seconds without a single byte of an answer after which it is given up; longer than any long poll or recall holds one back.
ANSWER_TIMEOUT_S = 120.0
#: Parallel connections: readers of blocks, and some waits beside them.
MAX_CONNECTIONS = 64


class Api:
    def __init__(self, client: httpx.Client, place: str) -> None:
        """`place` is how errors call the daemon: its socket or its URL."""
        self._client = client
        self.place = place

    @classmethod
    def over_socket(cls, socket: str, *, timeout_s: float) -> Api:
        # There is no TLS on a socket of this machine; making ready for it would cost a connect 25 ms of CPU.
        transport = httpx.HTTPTransport(uds=socket, limits=_limits(), verify=False)
        return cls(httpx.Client(transport=transport, base_url="http://ckptstore", timeout=_timeout(timeout_s)), socket)

    @classmethod
    def over_network(cls, url: str, token: str | None, *, timeout_s: float) -> Api:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return cls(httpx.Client(base_url=url, headers=headers, timeout=_timeout(timeout_s), limits=_limits()), url)

    def use_session(self, session: str) -> None:
        """Send this session's id from now on."""
        self._client.headers[SESSION_HEADER] = session

    def call(
        self,
        method: str,
        route: str,
        answer: type[Answer],
        message: Message | None = None,
        *,
        content: Any = None,
        headers: dict[str, str] | None = None,
        **params: Any,
    ) -> Answer:
        """One request, and its answer as a message. Parameters that are None are left out."""
        with self._translated(method, route):
            response = self._client.request(
                method,
                f"/v1/{route}",
                params=_given(params),
                headers=headers,
                **({"json": message.model_dump(mode="json")} if message is not None else {"content": content}),
            )
        _raise_error(response)
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            why = f"the daemon's answer is no {answer.__name__}: {error.errors()[0]['msg']}"
            hint = "client and daemon may be of different versions: restart the daemon"
            raise CkptStoreError(why, operation=method, subject=route, hint=hint) from error

    @contextlib.contextmanager
    def stream(
        self, method: str, route: str, message: Message | None = None, *, headers: dict[str, str] | None = None, **params: Any
    ) -> Iterator[httpx.Response]:
        """An answer whose body is read bit by bit inside the `with`; an error response is raised before it begins."""
        body = message.model_dump(mode="json") if message is not None else None
        with (
            self._translated(method, route),
            self._client.stream(method, f"/v1/{route}", params=_given(params), headers=headers, json=body) as response,
        ):
            if response.is_error:
                response.read()
                _raise_error(response)
            yield response

    @contextlib.contextmanager
    def _translated(self, method: str, route: str) -> Iterator[None]:
        try:
            yield
        except (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
            raise WaitTimeout(f"no answer ({type(error).__name__})", operation=f"{method} {route}", subject=self.place) from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise DaemonUnavailable(
                f"no daemon answers there: {error}",
                operation=f"{method} {route}",
                subject=self.place,
                hint="see the daemon's log; `ckptstore status` tells whether it runs",
            ) from error

    def close(self) -> None:
        self._client.close()


def _limits() -> httpx.Limits:
    return httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)


def _timeout(timeout_s: float) -> httpx.Timeout:
    return httpx.Timeout(ANSWER_TIMEOUT_S, connect=timeout_s)


def _given(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _raise_error(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        document = response.json()
    except ValueError:
        document = response.text
    raise from_wire(document)
