"""Who may read which model? The daemon's token and the endpoint's own open all of them; those in a public folder need none.

Without a token, or with a wrong one, a model that is not public does not exist. Over the unix socket its file's mode is the permission.
"""

from __future__ import annotations

import hmac

from fastapi import Request
from pydantic import SecretStr

from ckptstore.config import Settings
from ckptstore.errors import Unauthorized
from ckptstore_server.hugging_face.faults import RepoNotFound


class Access:
    def __init__(self, request: Request, settings: Settings) -> None:
        self._settings = settings
        self._given = request.headers.get("authorization", "")
        self.is_trusted = bool(request.app.state.local) or any(map(self._is, (settings.token, settings.hugging_face.read_token)))

    def _is(self, token: SecretStr | None) -> bool:
        wanted = f"Bearer {token.get_secret_value()}" if token is not None else ""
        return bool(wanted) and hmac.compare_digest(self._given.encode("utf-8", "replace"), wanted.encode("utf-8"))

    def is_public(self, folder: str) -> bool:
        return any(folder == public or folder.startswith(f"{public}/") for public in self._settings.hugging_face.public)

    def check(self, repo: str, folder: str) -> None:
        """Unauthorized for a wrong token, RepoNotFound without one, unless the model is public."""
        if self.is_trusted or self.is_public(folder):
            return
        if self._given:
            raise Unauthorized("the token is wrong", operation="read", subject=repo, hint="set HF_TOKEN")
        raise RepoNotFound("there is no such model, or it needs a token", operation="read", subject=repo, hint="set HF_TOKEN")
