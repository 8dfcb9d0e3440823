"""Which checkpoints of a folder are kept? Policies that can be combined, and what they decide about a list of checkpoints.

A policy says what to keep, never what to delete: a checkpoint goes only if no policy of its folder wants it. A folder without a policy
keeps everything. What is held, what something newer and safe has not yet followed, and what is not safe itself are not the policies'
business: see `decide`.

Written as one line (command line, TOML), or as the models themselves (Python, and the catalog's JSON):

    latest:3                the three newest
    every-steps:1000        those whose step is a multiple of 1,000
    every-seconds:3600      in every hour (of the clock since 1970) the first that was opened in it
    within:1h               those that are not older than that (`90s`, `30m`, `1h30m`, `7d`)
    best:2:loss:min         the two with the smallest metadata "loss" (`max`: the largest); the newer one of equals
    steps:500,1500          these very steps
    latest:3 best:1:loss:min    what either of them keeps

Pure: no clock, no catalog.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ckptstore.durations import duration_text, parse_duration
from ckptstore.errors import InvalidInput
from ckptstore.faults import first_faults

#: Policies of one folder or tier, and steps in one policy.
MOST_POLICIES, MOST_STEPS = 32, 10_000


@dataclass(frozen=True)
class Candidate:
    """A checkpoint of the folder, as far as a policy may look at it."""

    path: str
    opened: int  # the order in which saves began
    opened_at_s: float
    step: int | None
    metadata: Mapping[str, Any]
    safe: bool  # the wanted tier holds all of it
    held: bool = False
    age_s: float = 0.0  # since it was opened


class _Policy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def keeps(self, candidates: Sequence[Candidate]) -> set[str]:
        """The paths that it wants, of candidates in the order of `opened`."""
        raise NotImplementedError


class LatestN(_Policy):
    """The `n` newest."""

    keep: Literal["latest"] = "latest"
    n: Annotated[int, Field(ge=1, lt=1 << 31)]

    def keeps(self, candidates: Sequence[Candidate]) -> set[str]:
        return {candidate.path for candidate in candidates[-self.n :]}

    def __str__(self) -> str:
        return f"latest:{self.n}"


class EveryNSteps(_Policy):
    """Those whose step is a multiple of `steps`."""

    keep: Literal["every-steps"] = "every-steps"
    steps: Annotated[int, Field(ge=1, lt=1 << 63)]

    def keeps(self, candidates: Sequence[Candidate]) -> set[str]:
        return {candidate.path for candidate in candidates if candidate.step is not None and candidate.step % self.steps == 0}

    def __str__(self) -> str:
        return f"every-steps:{self.steps}"


class EveryNSeconds(_Policy):
    """The first of every span of so many seconds, counted from 1970: which one it is does not depend on what was deleted since."""

    keep: Literal["every-seconds"] = "every-seconds"
    seconds: Annotated[float, Field(gt=0, lt=1e12, allow_inf_nan=False)]

    def keeps(self, candidates: Sequence[Candidate]) -> set[str]:
        first: dict[int, str] = {}
        for candidate in candidates:
            first.setdefault(math.floor(candidate.opened_at_s / self.seconds), candidate.path)
        return set(first.values())

    def __str__(self) -> str:
        return f"every-seconds:{self.seconds:g}"


class Within(_Policy):
    """Those that were opened not longer ago than so many seconds."""

    keep: Literal["within"] = "within"
    seconds: Annotated[float, BeforeValidator(parse_duration), Field(gt=0, lt=1e12, allow_inf_nan=False)]

    def keeps(self, candidates: Sequence[Candidate]) -> set[str]:
        return {candidate.path for candidate in candidates if candidate.age_s <= self.seconds}

    def __str__(self) -> str:
        return f"within:{duration_text(self.seconds)}"


class BestN(_Policy):
    """The `n` with the smallest (or largest) metadata `metric`; those without a number there are not among them."""

    keep: Literal["best"] = "best"
    n: Annotated[int, Field(ge=1, lt=1 << 31)]
    metric: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s:]+$")]
    order: Literal["min", "max"] = "min"

    def keeps(self, candidates: Sequence[Candidate]) -> set[str]:
        scored = [(score, candidate) for candidate in candidates if (score := _number(candidate.metadata.get(self.metric))) is not None]
        scored.sort(key=lambda pair: (pair[0] if self.order == "min" else -pair[0], -pair[1].opened))
        return {candidate.path for _, candidate in scored[: self.n]}

    def __str__(self) -> str:
        return f"best:{self.n}:{self.metric}:{self.order}"


class Keep(_Policy):
    """These very steps."""

    keep: Literal["steps"] = "steps"
    steps: Annotated[tuple[Annotated[int, Field(ge=0, lt=1 << 63)], ...], Field(min_length=1, max_length=MOST_STEPS)]

    def keeps(self, candidates: Sequence[Candidate]) -> set[str]:
        wanted = set(self.steps)
        return {candidate.path for candidate in candidates if candidate.step in wanted}

    def __str__(self) -> str:
        return "steps:" + ",".join(map(str, self.steps))


Policy = LatestN | EveryNSteps | EveryNSeconds | Within | BestN | Keep
_Told = Annotated[Policy, Field(discriminator="keep")]
Policies = Annotated[tuple[_Told, ...], Field(min_length=1, max_length=MOST_POLICIES)]
_ONE: TypeAdapter[Policy] = TypeAdapter(_Told)
_MANY: TypeAdapter[tuple[Policy, ...]] = TypeAdapter(Policies)

#: kind → the fields that stand behind it, in order
_WORDS = {
    "latest": ("n",),
    "every-steps": ("steps",),
    "every-seconds": ("seconds",),
    "within": ("seconds",),
    "best": ("n", "metric", "order"),
    "steps": ("steps",),
}


#: Why something stays that no policy keeps.
NOT_YET = "nothing newer is safe yet"


@dataclass(frozen=True)
class Decision:
    """What is to go, oldest first; why everything else stays: path → reason; and the newest safe one, because of which others may go."""

    going: tuple[str, ...]
    staying: Mapping[str, str]
    last_good: str | None


def decide(policies: Sequence[Policy], candidates: Iterable[Candidate]) -> Decision:
    """What of one folder may go now.

    A checkpoint goes if no policy keeps it, nobody holds it, and a newer one is safe. Without policies, and until anything is safe, all
    stays; the newest safe one always does, whatever the policies say: it is what a resumed job would load.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.opened)
    last_good = next((candidate for candidate in reversed(ordered) if candidate.safe), None)
    wanted = {path: str(policy) for policy in reversed(policies) for path in policy.keeps(ordered)}
    staying: dict[str, str] = {}
    going = []
    for candidate in ordered:
        if not policies:
            reason = "no policy"
        elif candidate.held:
            reason = "held"
        elif candidate.path in wanted:
            reason = wanted[candidate.path]
        elif last_good is None or candidate.opened >= last_good.opened:
            reason = NOT_YET
        else:
            going.append(candidate.path)
            continue
        staying[candidate.path] = reason
    return Decision(tuple(going), staying, last_good.path if last_good is not None else None)


def parse_policies(texts: Iterable[str]) -> tuple[Policy, ...]:
    """Policies as they are written in one line each, or several in a line. InvalidInput, quoting the word, for what is none."""
    policies = tuple(_parse(word) for text in texts for word in text.split())
    if not 1 <= len(policies) <= MOST_POLICIES:
        raise InvalidInput(f"between 1 and {MOST_POLICIES} policies, not {len(policies)}", operation="keep", hint="such as latest:3")
    return policies


def read_policies(document: str | bytes) -> tuple[Policy, ...]:
    """Policies as the catalog keeps them. InvalidInput for anything else."""
    try:
        return _MANY.validate_json(document)
    except ValidationError as error:
        raise InvalidInput(f"these are no policies: {first_faults(error, 'policy')}", operation="keep") from error


def write_policies(policies: Sequence[Policy]) -> str:
    return _MANY.dump_json(tuple(policies)).decode()


def _parse(word: str) -> Policy:
    kind, *values = word.split(":")
    names = _WORDS.get(kind)
    if names is None:
        raise InvalidInput(f"{word[:80]!r} is no policy", operation="keep", hint=f"known are: {', '.join(_WORDS)}")
    if not values or len(values) > len(names):
        hint = ":".join([kind, *map(str.upper, names)])
        raise InvalidInput(f"{word[:80]!r} has {len(values)} values", operation="keep", hint=hint)
    fields: dict[str, Any] = dict(zip(names, values, strict=False))
    if kind == "steps":
        fields["steps"] = fields["steps"].split(",")
    try:
        return _ONE.validate_python({"keep": kind, **fields})
    except ValidationError as error:
        raise InvalidInput(f"{word[:80]!r}: {first_faults(error, 'policy')}", operation="keep") from error


def _number(value: object) -> float | None:
    """Of metadata: an int or float that can be compared."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)
