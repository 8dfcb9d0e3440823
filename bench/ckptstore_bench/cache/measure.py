"""How often is a file found? Every policy over the same traces, at the same sizes; a round is another seed."""

from __future__ import annotations

from dataclasses import dataclass, field

from ckptstore_bench.cache.policies import POLICIES, Hits, policy, replay
from ckptstore_bench.cache.traces import TRACES
from ckptstore_bench.running import Steps

#: Of all bytes of the files that are read again.
SHARES = (0.02, 0.05, 0.10, 0.20)


@dataclass
class Contest:
    """One trace at one size: the hits of each policy, one a round."""

    trace: str
    share: float
    hits: dict[str, list[Hits]] = field(default_factory=lambda: {name: [] for name in POLICIES})


def measure(files: int, reads: int, rounds: int, steps: Steps) -> list[Contest]:
    contests = [Contest(trace, share) for trace in TRACES for share in SHARES]
    steps.plan(rounds * len(contests))
    for number in range(rounds):
        made = {name: make(files, reads, number) for name, make in TRACES.items()}
        total_bytes = sum(dict(made["zipf"]).values())
        for contest in contests:
            steps.say(f"round {number + 1}: {contest.trace}, {contest.share:.0%} of the bytes")
            for name in POLICIES:
                contest.hits[name].append(replay(made[contest.trace], policy(name, int(contest.share * total_bytes))))
            steps.next()
    return contests
