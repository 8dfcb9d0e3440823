"""The demo's story: one training run, in four lives, against one that was never interrupted.

Each act does something terrible and then claims something that is checked at once; a claim that does not hold ends the demo with
NotAsClaimed. One thread tells it; what the trainers and the daemon do meanwhile comes in through `Record`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from ckptstore.errors import NotFound
from ckptstore_bench.demo.cluster import Cluster
from ckptstore_bench.demo.events import Event
from ckptstore_bench.demo.life import Life, NotAsClaimed
from ckptstore_bench.demo.record import STAGES, Record
from ckptstore_bench.demo.watcher import Watcher

RUN = "/runs/gpt"
UNTIL_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Plan:
    """Twelve saves, and at which of them the trainer dies: in the middle of the fourth, right after the sixth, right after the ninth."""

    save_every: int = 6
    torn_save: int = 4

    @property
    def steps(self) -> int:
        return 12 * self.save_every

    @property
    def saved_steps(self) -> list[int]:
        return list(range(self.save_every, self.steps + 1, self.save_every))

    @property
    def torn_step(self) -> int:
        return self.torn_save * self.save_every

    @property
    def whole_saves_before_the_torn_one(self) -> list[int]:
        return self.saved_steps[: self.torn_save - 1]

    @property
    def second_kill_step(self) -> int:
        return 6 * self.save_every

    @property
    def third_kill_step(self) -> int:
        return 9 * self.save_every


class Story:
    def __init__(self, plan: Plan, cluster: Cluster, record: Record, watcher: Watcher) -> None:
        self._plan = plan
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
        self._act("memory, NVMe and the parallel file system are lost, and training resumes from S3 alone")
        self.nvme_and_pfs_lost()
        found = self.resumed_from_s3_alone()
        same = f"the final parameters are bitwise those of the uninterrupted run: {found[:16]}… = {expected[:16]}…"
        self._claim(found == expected, same)
        self.everything_arrives()
        self.catalog_lost_too(expected)

    # --- the acts ----------------------------------------------------------------------------------------------------------------

    def an_uninterrupted_run(self) -> str:
        self._act(f"an uninterrupted run of {self._plan.steps} steps, without a store, to compare with")
        with self._life("reference", "ckptstore_bench.demo.trainer", "--steps", str(self._plan.steps)) as life:
            finished = life.until("finished")
            life.end()
            self._record.end("trainer", "■")
        self._finished(finished)
        return str(finished["fingerprint"])

    def killed_in_the_middle_of_a_save(self) -> None:
        self._act("the trainer is killed in the middle of a save, and resumes from memory")
        with self._saving_life("first", freeze_in_save=self._plan.torn_save) as life:
            life.until("started")
            self._record.begin("daemon")
            with self._cluster.store() as store:
                self._record.note("daemon", f"started by the trainer, pid {store.hello().pid}")
            frozen = life.until("half-copied")
            self._kill(life, f"after {frozen['copied_bytes'] / 1e6:.0f} of {frozen['size_bytes'] / 1e6:.0f} MB of a save's copy")
        earlier, step = self._plan.whole_saves_before_the_torn_one, self._plan.torn_step
        self._fate(step, "killed while copying")
        with self._cluster.store() as store:
            self._until("the torn save's attempt to be aborted", lambda: not store.status().attempts)
        self._claim(self._saved_steps() == earlier, f"of the torn save of step {step} nothing is visible")

    def resumed_from_memory(self) -> None:
        with self._saving_life("second", resume=True) as life:
            last = self._plan.whole_saves_before_the_torn_one[-1]
            self._resumed(life, from_step=last, from_tiers={"memory"}, what="from memory, though its trainer is dead")
            life.until("saved", step=self._plan.second_kill_step)
            self._kill(life, f"at once after `save` of step {self._plan.second_kill_step} returned")
        self._fate(self._plan.second_kill_step, "trainer killed as save returned")

    def daemon_killed_while_draining(self) -> None:
        self._act("the daemon is killed while it drains, and training resumes from NVMe")
        self._until("the daemon to publish it alone", lambda: self._is_in(self._plan.second_kill_step, "nvme"))
        self._record.note("daemon", f"has published step {self._plan.second_kill_step} without the trainer")
        self._watcher.look()
        with self._cluster.store() as store:
            waiting = {tier.name: tier for tier in store.status().tiers}["object"]
        pid = self._cluster.end_daemon(signal.SIGKILL)
        self._record.end("daemon", "✗")
        self._record.note("daemon", f"SIGKILL to pid {pid}, with {waiting.waiting_bytes / 1e6:.0f} MB still to drain to S3")
        self._claim(waiting.waiting_objects > 0, f"the daemon was killed with {waiting.waiting_objects} object(s) still to drain to S3")

    def resumed_from_nvme(self) -> None:
        with self._saving_life("third", resume=True) as life:
            self._record.begin("daemon")
            last = self._plan.second_kill_step
            self._resumed(life, from_step=last, from_tiers={"nvme"}, what="from NVMe, by a daemon that the trainer started")
            life.until("saved", step=self._plan.third_kill_step)
            self._kill(life, f"after step {self._plan.third_kill_step}")
        self._fate(self._plan.third_kill_step, "trainer killed as save returned")
        self._until("everything to be in S3", lambda: not self._record.unfinished())
        drained = all(self._is_in(step, "object") for step in self._saved_steps())
        self._claim(drained, "everything that waited when the daemon was killed has been drained to S3")

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
            self._resumed(life, from_step=self._plan.third_kill_step, from_tiers=None, what="from S3 alone")
            finished = life.until("finished")
            life.end()
            self._record.end("trainer", "■")
        self._finished(finished)
        return str(finished["fingerprint"])

    def everything_arrives(self) -> None:
        self._until("the last saves to be in S3", lambda: not self._record.unfinished())
        steps = self._plan.saved_steps
        self._claim(self._saved_steps() == steps, f"all {len(steps)} checkpoints are visible, each once")
        everywhere = {save.step for save in self._record.saves if len(save.reached_s) == len(STAGES)}
        self._claim(everywhere == set(steps), "every save whose call returned reached memory, NVMe, the parallel file system and S3")

    def catalog_lost_too(self, expected: str) -> None:
        self._act("the catalog is lost as well, and rebuilt from S3")
        self.nvme_and_pfs_lost()
        self._cluster.lose_catalog()
        self._record.note("daemon", "its catalog is deleted")
        said = self._cluster.rebuild_catalog()
        self._record.note("daemon", f"ckptstore catalog rebuild: {said.splitlines()[0]}")
        with self._saving_life("fifth", resume=True) as life:
            self._record.begin("daemon")
            self._resumed(life, from_step=self._plan.steps, from_tiers=None, what="from S3, by a catalog rebuilt from S3")
            finished = life.until("finished")
            life.end()
            self._record.end("trainer", "■")
        whole = self._saved_steps() == self._plan.saved_steps and finished["fingerprint"] == expected
        self._claim(whole, "a catalog rebuilt from the records in S3 knows every checkpoint, and the last has the same parameters")

    # --- what the acts are made of -------------------------------------------------------------------------------------------------

    def _saving_life(self, name: str, *, resume: bool = False, freeze_in_save: int = 0) -> Life:
        plan = self._plan
        training = ["--steps", str(plan.steps), "--save-every", str(plan.save_every), "--run", RUN, *(["--resume"] if resume else [])]
        return self._life(name, "ckptstore_bench.demo.witness", "--freeze-in-save", str(freeze_in_save), "--", *training)

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
        way = "read" if from_tiers is not None else "through the daemon"
        text = f"resumed at step {event['step']} {what}, in {event['seconds'] * 1e3:.0f} ms ({way}: {', '.join(sorted(tiers))})"
        self._record.note("trainer", text)
        from_there = from_tiers is None or tiers == from_tiers
        self._claim(event["step"] == from_step and from_there, f"training resumed at step {from_step} {what}")

    def _act(self, title: str) -> None:
        self._record.note("demo", title)

    def _finished(self, event: Event) -> None:
        self._record.note("trainer", f"finished step {event['step']}, loss {event['loss']:.4f}; parameters {event['fingerprint'][:16]}…")

    def _claim(self, holds: bool, what: str) -> None:
        if not holds:
            raise NotAsClaimed(f"it does not hold that {what}")
        self.claims.append(what)

    def _fate(self, step: int, fate: str) -> None:
        next(save for save in reversed(self._record.saves) if save.step == step).fate = fate

    def _saved_steps(self) -> list[int]:
        with self._cluster.store() as store:
            return [entry.step for entry in store.ls(RUN) if entry.step is not None]

    def _is_in(self, step: int, tier: str) -> bool:
        try:
            with self._cluster.store() as store:
                return tier in store.stat(f"{RUN}/step-{step:06d}").durability
        except NotFound:
            return False

    @staticmethod
    def _until(what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + UNTIL_TIMEOUT_S
        while not holds():
            if time.monotonic() > deadline:
                raise NotAsClaimed(f"waited {UNTIL_TIMEOUT_S:g} s in vain for {what}")
            time.sleep(0.05)
