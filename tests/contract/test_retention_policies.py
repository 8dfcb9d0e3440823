"""What policies keep, what they are written as, and that nothing goes which somebody could still need."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import InvalidInput
from ckptstore.retention import (
    BestN,
    Candidate,
    EveryNSeconds,
    EveryNSteps,
    Keep,
    LatestN,
    decide,
    parse_policies,
    read_policies,
    write_policies,
)


def checkpoint(step: int, *, at_s: float | None = None, safe: bool = True, held: bool = False, **metadata: object) -> Candidate:
    return Candidate(f"/run/{step:04}", step, float(step if at_s is None else at_s), step, metadata, safe, held)


def steps(paths: object) -> list[int]:
    return sorted(int(path[-4:]) for path in paths)  # type: ignore[attr-defined]


RUN = [checkpoint(step, loss=abs(step - 5) / 10) for step in range(1, 11)]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("latest:3", [8, 9, 10]),
        ("every-steps:5", [5, 10]),
        ("every-seconds:4", [1, 4, 8, 10]),
        ("best:2:loss:min", [5, 6, 10]),
        ("best:1:loss:max", [10]),
        ("best:1:nothing", [10]),
        ("steps:2,7,99", [2, 7, 10]),
        ("latest:1 every-steps:3", [3, 6, 9, 10]),
    ],
)
def test_what_a_policy_keeps_stays_and_the_last_good_one(policy: str, kept: list[int]) -> None:
    decision = decide(parse_policies([policy]), RUN)
    assert steps(decision.staying) == kept
    assert steps(decision.going) == [step for step in range(1, 11) if step not in kept]
    assert list(decision.going) == sorted(decision.going)


def test_nothing_goes_before_something_newer_is_safe() -> None:
    unsafe = [checkpoint(step, safe=False) for step in (4, 5)]
    assert steps(decide([LatestN(n=1)], [*RUN[:3], *unsafe]).going) == [1, 2]
    assert decide([LatestN(n=1)], unsafe).going == ()
    assert decide([Keep(steps=(99,))], [checkpoint(1), *unsafe]).going == ()


def test_what_is_held_stays_and_says_so() -> None:
    decision = decide([LatestN(n=1)], [checkpoint(1, held=True), checkpoint(2), checkpoint(3)])
    assert steps(decision.going) == [2]
    assert decision.staying == {"/run/0001": "held", "/run/0003": "latest:1"}


def test_a_folder_without_policies_keeps_everything() -> None:
    assert decide([], RUN).going == ()


def test_every_span_keeps_its_first_whatever_went_before() -> None:
    policy = EveryNSeconds(seconds=100)
    run = [checkpoint(index, at_s=index * 30.0) for index in range(20)]
    first = policy.keeps(run)
    assert policy.keeps([candidate for candidate in run if candidate.path in first or candidate.step == 19]) - {"/run/0019"} == first


def test_numbers_that_cannot_be_compared_are_no_metric() -> None:
    odd = [checkpoint(1, loss="small"), checkpoint(2, loss=math.nan), checkpoint(3, loss=True), checkpoint(4, loss=0.5), checkpoint(5)]
    assert steps(BestN(n=9, metric="loss").keeps(odd)) == [4]


@pytest.mark.parametrize(
    "text",
    ["", "latest", "latest:0", "latest:x", "latest:1:2", "newest:3", "every-steps:0", "every-seconds:-1", "every-seconds:inf", "best:1",
     "best:1:loss:middle", "best:1::min", "steps:", "steps:1,,2", "steps:-1", "latest:99999999999999999999"],
)  # fmt: skip
def test_what_is_no_policy_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_policies([text])
    assert text.split(":")[0] in str(refused.value)


POLICIES = st.one_of(
    st.builds(LatestN, n=st.integers(1, 6)),
    st.builds(EveryNSteps, steps=st.integers(1, 6)),
    st.builds(EveryNSeconds, seconds=st.floats(0.5, 50)),
    st.builds(BestN, n=st.integers(1, 4), metric=st.just("loss"), order=st.sampled_from(["min", "max"])),
    st.builds(Keep, steps=st.lists(st.integers(0, 30), min_size=1, max_size=4).map(tuple)),
)
RUNS = st.lists(
    st.builds(
        lambda at_s, loss, safe, held: (at_s, loss, safe, held),
        st.floats(0, 100), st.one_of(st.none(), st.floats(allow_nan=True)), st.booleans(), st.booleans(),
    ),
    max_size=25,
)  # fmt: skip


@given(st.lists(POLICIES, min_size=1, max_size=4), RUNS)
def test_whatever_the_policies_the_last_good_one_and_what_is_held_stay(policies: list[object], run: list[tuple[Any, ...]]) -> None:
    candidates = [checkpoint(step, at_s=at_s, safe=safe, held=held, loss=loss) for step, (at_s, loss, safe, held) in enumerate(run)]
    decision = decide(policies, candidates)  # type: ignore[arg-type]
    gone = set(decision.going)
    assert gone.isdisjoint(decision.staying)
    assert gone | set(decision.staying) == {candidate.path for candidate in candidates}
    assert not any(candidate.held for candidate in candidates if candidate.path in gone)
    safe = [candidate for candidate in candidates if candidate.safe]
    assert all(candidate.opened < safe[-1].opened for candidate in candidates if candidate.path in gone)
    # Deciding again about what is left takes nothing more, unless a better one of `latest` or `best` came: the same list, the same end.
    left = [candidate for candidate in candidates if candidate.path not in gone]
    assert decide(policies, left).going == ()  # type: ignore[arg-type]


@given(st.lists(POLICIES, min_size=1, max_size=4))
def test_policies_are_read_as_they_were_written(policies: list[object]) -> None:
    assert list(read_policies(write_policies(policies))) == policies  # type: ignore[arg-type]
    plain = [policy for policy in policies if not isinstance(policy, EveryNSeconds)]
    if plain:
        assert list(parse_policies([" ".join(map(str, plain))])) == plain
