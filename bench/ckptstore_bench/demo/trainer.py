"""The training script of the demo: an ordinary one, and three lines of ckptstore.

It reports what it does as JSON lines on stdout, for the story that starts and kills it.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

import ckptstore
from ckptstore_bench.demo.events import report
from ckptstore_bench.demo.training import Training


def main(
    steps: Annotated[int, typer.Option(help="train until this step")],
    save_every: Annotated[int, typer.Option(help="steps between two saves; 0: never")] = 0,
    run: Annotated[str, typer.Option(help="the folder of the run")] = "/runs/gpt",
    resume: Annotated[bool, typer.Option(help="go on from the newest checkpoint")] = False,
) -> None:
    training = Training()
    store = ckptstore.connect() if save_every else None  # line 1
    report("started")
    if resume and store is not None:
        began_s = time.monotonic()
        state = store.load(f"{run}/@latest")  # line 2
        training.restore(state)
        report("resumed", step=training.step, seconds=time.monotonic() - began_s)
    loss = float("nan")
    while training.step < steps:
        loss = training.advance()
        report("step", step=training.step, loss=loss)
        if store is not None and training.step % save_every == 0:
            report("saving", step=training.step)
            began_s = time.monotonic()
            pending = store.save(f"{run}/step-{training.step:06d}", training.state(), step=training.step)  # line 3
            report("saved", step=training.step, stall_s=time.monotonic() - began_s, attempt=pending.attempt_id)
    report("finished", step=training.step, loss=loss, fingerprint=training.fingerprint())


if __name__ == "__main__":
    typer.run(main)
