"""One rank of a job that trains (it counts) until it is told to leave, as a test runs it: `loop_program.py HOME FOLDER GROUP PACE_S`.

Ranks are not held together by anything but the store: each goes at its own pace. Prints one JSON line at each step that matters.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict

import numpy as np

import ckptstore


def main() -> None:
    home, folder, group, pace_s = sys.argv[1:]
    me = {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}

    def say(event: str, **more: object) -> None:
        print(json.dumps({"event": event, "rank": me["rank"], **more}), flush=True)

    step = 0
    with ckptstore.connect(home=home, group=group, start=False) as store:
        with store.preemption(folder, grace_s=60, **me) as notice:
            while not notice.leaving:
                step += 1
                time.sleep(float(pace_s))
                if notice.wanted(step):
                    store.save(f"{folder}/step-{step:06}", {"step": np.full(1000, step)}, step=step, **me)
                    say("saved", step=step)
                elif step == 1:
                    say("ready")
        say("left", step=step, kept=asdict(notice.kept) if notice.kept else None)


if __name__ == "__main__":
    main()
