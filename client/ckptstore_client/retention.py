"""`store.retention`: what is kept of a folder's checkpoints, what nobody may remove, and what can be had back.

    store.retention.keep("/runs/gpt", LatestN(n=3), EveryNSteps(steps=1000))     # or "latest:3 every-steps:1000"
    store.retention.keep("/runs/gpt", "within:1h", tier="nvme")
    store.retention.hold("/runs/gpt/step-000500", "the paper's")
    store.retention.undo("/runs/gpt/step-000700")

Changes are not asked for again when a connection is lost: the first one may have worked. Thread-safe.
"""

from __future__ import annotations

from ckptstore.errors import InvalidInput
from ckptstore.paths import check_folder, check_path
from ckptstore.retention import Policy, parse_policies
from ckptstore.retention_messages import (
    TRASH_S,
    HoldInfo,
    HoldList,
    HoldPath,
    Restored,
    RetentionInfo,
    RetentionList,
    RetentionPlan,
    SetRetention,
    TrashedInfo,
    TrashList,
    UndoPath,
)
from ckptstore.wire import Removed
from ckptstore_client.connection import Connection


class RetentionControl:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def keep(
        self,
        folder: str,
        *policies: Policy | str,
        tier: str = "",
        safe_in: str = "",
        trash_s: float = TRASH_S,
        dry_run: bool = False,
    ) -> RetentionPlan:
        """Keep of the checkpoints directly in `folder` what any of these policies wants, from now on, in place of what was said before.

        What none of them wants goes into the trash for `trash_s`, once a newer checkpoint is whole in `safe_in` (the deepest, unless
        said) or a deeper one. The newest such checkpoint always stays. With `tier` the policies say what stays in that tier, and those of
        the folder say so of the others: what only some tiers want is not brought into the others, and leaves them once it is safe
        elsewhere. With `dry_run` nothing is set: the plan says what would go.
        """
        path = check_folder(folder, operation="keep")
        given: list[Policy] = []
        for policy in policies:
            given += parse_policies([policy]) if isinstance(policy, str) else [policy]
        if not given:
            raise InvalidInput("no policy was given", operation="keep", subject=path, hint="such as 'latest:3'; or keep_all")
        message = SetRetention(path=path, policies=tuple(given), tier=tier, safe_in=safe_in, trash_s=trash_s)
        api = self._connection.transport().api
        return api.call("POST", "retention", RetentionPlan, message, dry_run="true" if dry_run else "false")

    def keep_all(self, folder: str, *, tier: str | None = None) -> list[RetentionInfo]:
        """Forget the policies of `folder` and its tiers, or of one tier: everything is kept from now on. What was said until now.

        NotFound if nothing was.
        """
        path, api = check_folder(folder, operation="keep"), self._connection.transport().api
        return api.call("DELETE", "retention", RetentionList, path=path, tier=tier).folders

    def folders(self) -> list[RetentionInfo]:
        """All policies, in the order of folders and tiers."""
        return self._connection.run(lambda transport: transport.api.call("GET", "retention", RetentionList)).folders

    def hold(self, path: str, why: str = "") -> HoldInfo:
        """Let nobody remove or replace what is at `path`, by hand or by policy, until it is released."""
        message = HoldPath(path=check_path(path, operation="hold"), why=why)
        return self._connection.run(lambda transport: transport.api.call("POST", "holds", HoldInfo, message))

    def release(self, path: str) -> HoldInfo:
        """NotFound if it is not held."""
        check_path(path, operation="release")
        return self._connection.transport().api.call("DELETE", "holds", HoldInfo, path=path)

    def holds(self) -> list[HoldInfo]:
        return self._connection.run(lambda transport: transport.api.call("GET", "holds", HoldList)).holds

    def trash(self) -> list[TrashedInfo]:
        """What can be had back, what goes first first."""
        return self._connection.run(lambda transport: transport.api.call("GET", "trash", TrashList)).trashed

    def undo(self, path: str) -> str:
        """Put back what was last thrown away from `path`, and hold it: the policies would let it go again."""
        message = UndoPath(path=check_path(path, operation="undo"))
        return self._connection.transport().api.call("POST", "trash/undo", Restored, message).path

    def gc(self, *, everything: bool = False) -> list[str]:
        """Remove for good what has waited long enough in the trash, or all that is there. The daemon does the first by itself."""
        api = self._connection.transport().api
        return api.call("DELETE", "trash", Removed, everything="true" if everything else "false").removed
