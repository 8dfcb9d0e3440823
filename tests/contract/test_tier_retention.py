"""What policies of single tiers say together with those of their folder, and that nothing is lost by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import InvalidInput
from ckptstore.retention import BestN, Candidate, EveryNSteps, Keep, LatestN, Within, decide, parse_policies, read_policies, write_policies
from ckptstore.tier_retention import FOLDER, Fate, Rule, Standing, judge

ORDER = ("nvme", "pfs", "object")
EVERYWHERE = ORDER


def standing(step: int, *durability: str, age_s: float = 0.0, held: bool = False, unkept: tuple[str, ...] = ()) -> Standing:
    candidate = Candidate(f"/run/{step:04}", step, -age_s, step, {"loss": step % 7}, safe=False, held=held, age_s=age_s)
    return Standing(candidate, durability, frozenset(unkept))


def rules(**said: str) -> dict[str, Rule]:
    return {FOLDER if tier == "folder" else tier: Rule(parse_policies([words])) for tier, words in said.items()}


def fates(said: dict[str, Rule], *standings: Standing) -> dict[int, Fate]:
    return {int(fate.path[-4:]): fate for fate in judge(said, ORDER, standings)}


HOUR_AND_THOUSANDTH = rules(nvme="within:1h", pfs="steps:0", object="every-steps:1000")


def test_every_save_an_hour_on_nvme_and_every_thousandth_for_ever_in_the_object_store() -> None:
    told = fates(
        HOUR_AND_THOUSANDTH,
        standing(1000, *EVERYWHERE, age_s=9000),
        standing(1500, "nvme", age_s=5000),
        standing(2000, "nvme", "object", age_s=4000),
        standing(2500, "nvme", age_s=2000),
        standing(3000, "nvme", age_s=10),
    )
    assert told[1000].leaves == ("nvme", "pfs")
    assert told[1500].goes
    assert (told[2000].goes, told[2000].leaves) == (False, ("nvme", "pfs"))
    assert (told[2500].goes, told[2500].wanted.keys(), told[2500].skips) == (False, {"nvme"}, ("pfs", "object"))
    assert (told[3000].wanted.keys(), told[3000].skips) == ({"nvme", "object"}, ("pfs",))


def test_a_tier_for_which_nobody_spoke_keeps_everything() -> None:
    told = fates(rules(nvme="latest:1"), standing(1, *EVERYWHERE), standing(2, *EVERYWHERE))
    assert (told[1].goes, told[1].leaves, told[1].skips) == (False, ("nvme",), ("nvme",))
    assert dict(told[1].wanted) == {"pfs": "no policy", "object": "no policy"}


def test_the_folders_policies_go_for_tiers_without_their_own() -> None:
    told = fates(rules(folder="latest:2", nvme="latest:1"), *(standing(step, *EVERYWHERE) for step in (1, 2, 3)))
    assert told[1].goes
    assert told[2].leaves == ("nvme",)
    assert told[2].why == "latest:2 in pfs, latest:2 in object"
    assert told[3].leaves == ()


def test_nothing_leaves_a_tier_before_it_is_safe_in_another() -> None:
    said = rules(nvme="latest:1", pfs="latest:1", object="latest:9")
    assert fates(said, standing(1, "nvme"), standing(2, "nvme"))[1].leaves == ()
    assert fates(said, standing(1, "nvme", "pfs"), standing(2, "nvme"))[1].leaves == ("nvme",), "a deeper one will do"
    assert fates(said, standing(1, "nvme", "pfs"), standing(2, "nvme", "pfs"))[1].leaves == ("nvme",)
    upwards = rules(nvme="latest:9", pfs="latest:1", object="latest:1")
    assert fates(upwards, standing(1, "pfs", "object"), standing(2, *EVERYWHERE))[1].leaves == ("pfs",), "the last one stays"
    assert fates(upwards, standing(1, *EVERYWHERE), standing(2, *EVERYWHERE))[1].leaves == ("pfs", "object"), "one that wants it will do"


@pytest.mark.parametrize(("safe_in", "newer", "goes"), [
    ("pfs", ("nvme",), False),
    ("pfs", ("nvme", "pfs"), True),
    ("pfs", ("object",), True),  # a deeper one will do
    ("nvme", ("nvme",), True),
    ("", ("nvme", "pfs"), False),  # the deepest
    ("", ("nvme", "object"), True),
    ("gone", EVERYWHERE, False),
])  # fmt: skip
def test_nothing_goes_before_something_newer_is_in_the_tier_that_was_chosen(safe_in: str, newer: tuple[str, ...], goes: bool) -> None:
    said = {FOLDER: Rule(parse_policies(["latest:1"]), safe_in)}
    told = fates(said, standing(1, *EVERYWHERE), standing(2, *newer))
    assert told[1].goes is goes
    assert told[1].because_of == ({"": ("/run/0002", safe_in or "object")} if goes else {})


@pytest.mark.parametrize("newer", [("nvme",), ("nvme", "pfs")])
def test_nothing_leaves_a_tier_before_something_newer_is_in_the_tier_that_was_chosen(newer: tuple[str, ...]) -> None:
    said = rules(object="latest:9") | {"nvme": Rule(parse_policies(["latest:1"]), "pfs")}
    told = fates(said, standing(1, *EVERYWHERE), standing(2, *newer))
    assert told[1].leaves == (("nvme",) if "pfs" in newer else ())


def test_the_newest_that_a_tier_holds_stays_in_it_whatever_it_says() -> None:
    said = rules(nvme="latest:9", object="steps:99")
    told = fates(said, standing(1, *EVERYWHERE), standing(2, *EVERYWHERE), standing(3, "nvme"))
    assert told[1].leaves == ("object",)
    assert told[2].leaves == ()
    assert told[3].skips == ("object",)


def test_what_is_held_stays_everywhere_and_comes_back() -> None:
    told = fates(HOUR_AND_THOUSANDTH, standing(1, "nvme", age_s=9000, held=True, unkept=("object",)), standing(2, "nvme"))
    assert (told[1].goes, told[1].leaves, told[1].skips, told[1].returns) == (False, (), (), ("object",))


def test_what_a_tier_wants_again_comes_back_also_when_nobody_speaks_any_more() -> None:
    one = standing(1000, "nvme", unkept=("object", "pfs"))
    assert fates(HOUR_AND_THOUSANDTH, one)[1000].returns == ("object",)
    assert fates({}, one)[1000].returns == ("pfs", "object")
    assert fates(rules(folder="steps:5"), one)[1000].returns == ("pfs", "object"), "what only the folder judges is drained until it goes"


def test_rules_of_tiers_that_are_gone_say_nothing() -> None:
    assert fates(rules(tape="latest:1"), standing(1, *EVERYWHERE), standing(2, *EVERYWHERE))[1].wanted.keys() == {*ORDER}


POLICIES = st.lists(
    st.one_of(
        st.builds(LatestN, n=st.integers(1, 4)),
        st.builds(EveryNSteps, steps=st.integers(1, 4)),
        st.builds(BestN, n=st.integers(1, 2), metric=st.just("loss")),
        st.builds(Keep, steps=st.lists(st.integers(0, 12), min_size=1, max_size=3).map(tuple)),
        st.builds(Within, seconds=st.floats(1, 100)),
    ),
    min_size=1,
    max_size=2,
)
RULES = st.dictionaries(
    st.sampled_from([FOLDER, *ORDER]), st.builds(Rule, POLICIES, st.sampled_from(["", "", *ORDER, "gone"])), min_size=1, max_size=4
)
SOME_TIERS = st.sets(st.sampled_from(ORDER)).map(lambda tiers: sorted(tiers, key=ORDER.index))
RUNS = st.lists(st.tuples(SOME_TIERS, st.floats(0, 200), st.booleans()), max_size=12)


@given(RULES, RUNS)
def test_whatever_is_said_nothing_that_stays_loses_its_last_tier(said: dict[str, Rule], run: list[tuple[Any, ...]]) -> None:
    standings = [standing(step, *tiers, age_s=age_s, held=held) for step, (tiers, age_s, held) in enumerate(run)]
    told = fates(said, *standings)
    for step, one in enumerate(standings):
        fate, newer = told[step], standings[step + 1 :]
        assert not {*fate.skips, *fate.leaves} & {*fate.wanted}
        if one.candidate.held:
            assert not fate.goes
            assert not fate.leaves
        if fate.goes:
            assert not fate.wanted
            assert fate.because_of[""]
            deepest = max((ORDER.index(tier) for tier in one.durability), default=0)
            as_deep = any(ORDER.index(tier) >= deepest for other in newer for tier in other.durability)
            assert as_deep or any(rule.safe_in for rule in said.values()), "nothing newer is as safe"
        for tier in fate.leaves:
            left = {*one.durability} - {*fate.leaves}
            assert left, "it left its last tier"
            if tier in one.durability:
                assert newer
                assert fate.because_of[tier]
    for tier in ORDER if not any(rule.safe_in for rule in said.values()) else ():
        as_deep_as = [step for step, one in enumerate(standings) if {*one.durability} & {*ORDER[ORDER.index(tier) :]}]
        if as_deep_as and tier in standings[as_deep_as[-1]].durability:
            newest = told[as_deep_as[-1]]
            assert not newest.goes and tier not in newest.leaves, f"the newest that {tier} holds"


@given(POLICIES, RUNS)
def test_where_only_the_folder_speaks_it_is_as_it_always_was(policies: list[Any], run: list[tuple[Any, ...]]) -> None:
    standings = [standing(step, *tiers, age_s=age_s, held=held) for step, (tiers, age_s, held) in enumerate(run)]
    decision = decide(policies, [replace(one.candidate, safe="object" in one.durability) for one in standings])
    told = judge({FOLDER: Rule(policies)}, ORDER, standings)
    assert tuple(fate.path for fate in told if fate.goes) == decision.going
    assert {fate.path: fate.why for fate in told if not fate.goes} == decision.staying
    assert not any(fate.leaves or fate.skips for fate in told)


@pytest.mark.parametrize(
    ("word", "seconds"), [("within:1h", 3600), ("within:90", 90), ("within:1h30m", 5400), ("within:7d", 604800), ("within:0.5s", 0.5)]
)
def test_a_span_is_written_as_people_write_it_and_read_again(word: str, seconds: float) -> None:
    (policy,) = parse_policies([word])
    assert policy == Within(seconds=seconds)
    assert parse_policies([str(policy)]) == (policy,)
    assert read_policies(write_policies([policy])) == (policy,)


@pytest.mark.parametrize("word", ["within", "within:", "within:soon", "within:0", "within:-1h", "within:1h:2"])
def test_what_is_no_span_is_refused_by_name(word: str) -> None:
    with pytest.raises(InvalidInput, match="within"):
        parse_policies([word])


def test_within_keeps_what_is_young_enough() -> None:
    run = [standing(step, age_s=age_s).candidate for step, age_s in enumerate([100.0, 60.0, 10.0])]
    assert Within(seconds=60).keeps(run) == {"/run/0001", "/run/0002"}
