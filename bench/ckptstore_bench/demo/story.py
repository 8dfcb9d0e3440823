"""The demo's story: one training run, in four lives, against one that was never interrupted.

Each act does something terrible and then claims something that is checked at once; a claim that does not hold ends the demo with
NotAsClaimed. One thread tells it; what the trainers and the daemon do meanwhile comes in through `Record`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from ckptstore.errors import NotFound
from ckptstore.wire import EntryPage, PublicationInfo
from ckptstore_bench.demo.cluster import Cluster
from ckptstore_bench.demo.life import Life, NotAsClaimed
from ckptstore_bench.demo.record import STAGES, Record
from ckptstore_bench.demo.watcher import Watcher

RUN = "/runs/gpt"
STEPS = 72
SAVE_EVERY = 6
FROZEN_SAVE = 4  # of the first life: step 24
SECOND_KILL_STEP = 36
THIRD_KILL_STEP = 54
UNTIL_TIMEOUT_S = 120.0


class Story:
    def __init__(self, cluster: Cluster, record: Record, watcher: Watcher) -> None:
        self._cluster = cluster
        self._record = record
        self._watcher = watcher
        self.claims: list[str] = []

    def tell(self) -> None:
        expected = self.an_uninterrupted_run()
        self.killed_in_the_middle_of_a_save()
        self.resumed_from_memory()
        self.daemon_killed_while_draining()
        self.resumed_from_nvme()
        self.nvme_and_pfs_lost()
        found = self.resumed_from_s3_alone()
        self._claim(
            found == expected, f"the final parameters are bitwise those of the uninterrupted run: {found[:16]}… = {expected[:16]}…"
        )
        self.everything_arrives()

    # --- the acts ----------------------------------------------------------------------------------------------------------------

    def an_uninterrupted_run(self) -> str:
        self._record.note("demo", f"an uninterrupted run of {STEPS} steps, without a store, to compare with")
        with self._life("reference", "ckptstore_bench.demo.trainer", "--steps", str(STEPS)) as life:
            finished = life.until("finished")
            life.end()
            self._record.end("trainer", "■")
        self._record.note("trainer", f"finished step {finished['step']}; its parameters hash to {finished['fingerprint'][:16]}…")
        return str(finished["fingerprint"])

    def killed_in_the_middle_of_a_save(self) -> None:
        with self._saving_life("first", freeze_in_save=FROZEN_SAVE) as life:
            life.until("started")
            self._record.begin("daemon")
            self._record.note("daemon", f"started by the trainer, pid {self._cluster.status().hello.pid}")
            frozen = life.until("half-copied")
            self._kill(life, f"after {frozen['copied_bytes'] / 1e6:.0f} of {frozen['size_bytes'] / 1e6:.0f} MB of a save's copy")
        step = FROZEN_SAVE * SAVE_EVERY
        self._fate(step, "killed while copying")
        self._until("the torn save's attempt to be aborted", lambda: not self._cluster.status().attempts)
        self._claim(self._saved_steps() == list(range(SAVE_EVERY, step, SAVE_EVERY)), f"of the torn save of step {step} nothing is visible")

    def resumed_from_memory(self) -> None:
        with self._saving_life("second", resume=True) as life:
            last = (FROZEN_SAVE - 1) * SAVE_EVERY
            self._resumed(life, from_step=last, from_tiers={"memory"}, what="from memory, though its trainer is dead")
            life.until("saved", step=SECOND_KILL_STEP)
            self._kill(life, f"at once after `save` of step {SECOND_KILL_STEP} returned")
        self._fate(SECOND_KILL_STEP, "trainer killed as save returned")

    def daemon_killed_while_draining(self) -> None:
        self._until("the daemon to publish it alone", lambda: self._is_in(SECOND_KILL_STEP, "nvme"))
        self._record.note("daemon", f"has published step {SECOND_KILL_STEP} without the trainer")
        self._watcher.look()
        waiting = {tier.name: tier for tier in self._cluster.status().tiers}["object"]
        pid = self._cluster.end_daemon(signal.SIGKILL)
        self._record.end("daemon", "✗")
        self._record.note("daemon", f"SIGKILL to pid {pid}, with {waiting.waiting_bytes / 1e6:.0f} MB still to drain to S3")
        self._claim(waiting.waiting_objects > 0, f"the daemon was killed with {waiting.waiting_objects} object(s) still to drain to S3")

    def resumed_from_nvme(self) -> None:
        with self._saving_life("third", resume=True) as life:
            self._record.begin("daemon")
            self._resumed(life, from_step=SECOND_KILL_STEP, from_tiers={"nvme"}, what="from NVMe, by a daemon that the trainer started")
            life.until("saved", step=THIRD_KILL_STEP)
            self._kill(life, f"after step {THIRD_KILL_STEP}")
        self._fate(THIRD_KILL_STEP, "trainer killed as save returned")
        self._until(f"step {THIRD_KILL_STEP} to be in S3", lambda: self._is_in(THIRD_KILL_STEP, "object"))
        self._claim(not self._record.unfinished(), "everything that waited when the daemon was killed has been drained to S3")

    def nvme_and_pfs_lost(self) -> None:
        pid = self._cluster.end_daemon(signal.SIGTERM)
        self._record.end("daemon", "■")
        self._record.note("daemon", f"pid {pid} stopped")
        for tier in ("nvme", "pfs"):
            lost_bytes = self._cluster.wipe(tier)
            self._record.lose(tier)
            self._record.note(tier, f"wiped: {lost_bytes / 1e6:.0f} MB are gone")

    def resumed_from_s3_alone(self) -> str:
        empty = all(self._cluster.stored_bytes(tier) == 0 for tier in ("nvme", "pfs"))
        self._claim(empty, "memory, NVMe and the parallel file system hold nothing any more")
        with self._saving_life("fourth", resume=True) as life:
            self._record.begin("daemon")
            self._resumed(life, from_step=THIRD_KILL_STEP, from_tiers=None, what="from S3 alone")
            finished = life.until("finished")
            life.end()
            self._record.end("trainer", "■")
        self._record.note("trainer", f"finished step {finished['step']}; its parameters hash to {finished['fingerprint'][:16]}…")
        return str(finished["fingerprint"])

    def everything_arrives(self) -> None:
        self._until("the last saves to be in S3", lambda: self._is_in(STEPS, "object"))
        self._watcher.look()
        steps = list(range(SAVE_EVERY, STEPS + 1, SAVE_EVERY))
        self._claim(self._saved_steps() == steps, f"all {len(steps)} checkpoints are visible, each once")
        late = [save.step for save in self._record.saves if not save.fate.startswith("killed") and len(save.reached_s) < len(STAGES)]
        self._claim(not late, "every save whose call returned reached memory, NVMe, the parallel file system and S3")

    # --- what the acts are made of -------------------------------------------------------------------------------------------------

    def _saving_life(self, name: str, *, resume: bool = False, freeze_in_save: int = 0) -> Life:
        arguments = ["--freeze-in-save", str(freeze_in_save), "--", "--steps", str(STEPS), "--save-every", str(SAVE_EVERY), "--run", RUN]
        return self._life(name, "ckptstore_bench.demo.witness", *arguments, *(["--resume"] if resume else []))

    def _life(self, name: str, module: str, *arguments: str) -> Life:
        self._record.begin("trainer")
        return Life(
            f"the {name} trainer",
            module,
            list(arguments),
            environment=self._cluster.environment(),
            log=self._cluster.folder / f"trainer-{name}.log",
            observe=lambda event: self._record.observe(name, event),
        )

    def _kill(self, life: Life, when: str) -> None:
        life.kill()
        self._record.end("trainer", "✗")
        self._record.note("trainer", f"SIGKILL {when}")

    def _resumed(self, life: Life, *, from_step: int, from_tiers: set[str] | None, what: str) -> None:
        """The trainer has resumed at this step, and read only from these tiers (None: from wherever the daemon recalled it to)."""
        tiers: set[str] = set()
        while (event := life.until("opened", "resumed")).name == "opened":
            tiers.add(event["tier"])
        text = f"resumed at step {event['step']} {what}, in {event['seconds'] * 1e3:.0f} ms (opened: {', '.join(sorted(tiers))})"
        self._record.note("trainer", text)
        from_there = from_tiers is None or tiers == from_tiers
        self._claim(event["step"] == from_step and from_there, f"training resumed at step {from_step} {what}")

    def _claim(self, holds: bool, what: str) -> None:
        if not holds:
            raise NotAsClaimed(f"it does not hold that {what}")
        self.claims.append(what)

    def _fate(self, step: int, fate: str) -> None:
        next(save for save in reversed(self._record.saves) if save.step == step).fate = fate

    def _saved_steps(self) -> list[int]:
        with self._cluster.api() as api:
            entries = api.call("GET", "entries", EntryPage, path=RUN).entries
        return [entry.step for entry in entries if entry.step is not None]

    def _is_in(self, step: int, tier: str) -> bool:
        with self._cluster.api() as api:
            try:
                return tier in api.call("GET", "publications", PublicationInfo, path=f"{RUN}/step-{step:06d}").durability
            except NotFound:
                return False

    @staticmethod
    def _until(what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + UNTIL_TIMEOUT_S
        while not holds():
            if time.monotonic() > deadline:
                raise NotAsClaimed(f"waited {UNTIL_TIMEOUT_S:g} s in vain for {what}")
            time.sleep(0.05)
