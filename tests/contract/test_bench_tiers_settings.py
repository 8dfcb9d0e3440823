"""Which setting `bench tiers` calls best, what it would write, and that writing it keeps the operator's file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ckptstore.config import TierSettings, read_settings
from ckptstore.errors import ConfigInvalid
from ckptstore_bench.tiers.apply import apply_changes
from ckptstore_bench.tiers.best import best_huge_pages, best_of, clearly_less
from ckptstore_bench.tiers.contender import Setting, Timing, aligned, in_threads, pieces_of
from ckptstore_bench.tiers.device_memory import MemoryDevice
from ckptstore_bench.tiers.sweep import Measured, Place, random_offsets, shown
from ckptstore_bench.tiers.tiers_report import percentile

MIB = 1 << 20
PRESENT = Setting(4 * MIB, 4, True)
CONFIGURATION = """\
# What the operator wrote, and why.
grace_s = 60.0   # readers are slow here

[[tiers]]
name = "nvme"  # the fast one
kind = "posix"
path = "/mnt/nvme"
direct_io = "never"

# The bucket of the team.
[[tiers]]
name = "s3"
kind = "object"
url = "s3://team/ckptstore"
options = { region = "eu-central-1" } # Frankfurt
"""


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CKPTSTORE_CONFIG", raising=False)


def measured(rates: dict[Setting, list[float]], present: Setting, kind: str = "posix") -> Measured:
    """As if each setting had written and been read at these rates, one a round."""
    device = MemoryDevice(aligned(4096))
    found = Measured(Place("nvme", kind, False, device, device, list(rates), present, 1, [1], 0))  # type: ignore[arg-type]
    for setting, per_round in rates.items():
        for rate in per_round:
            for act in ("write", "read"):
                for side in ("store", "device"):
                    found.row(act, setting).add(side, Timing(1 / rate, 1))  # type: ignore[arg-type]
    return found


def posix(**given: object) -> TierSettings:
    return TierSettings.model_validate({"name": "nvme", "kind": "posix", "path": "/mnt/nvme", **given})


# --- what is best ------------------------------------------------------------------------------------------------------------------------


def test_a_setting_that_is_faster_in_every_round_is_advised() -> None:
    best = best_of(measured({PRESENT: [1.0, 1.1, 1.0], Setting(MIB, 8, True): [1.5, 1.6, 1.4]}, PRESENT), posix())
    assert best.setting == Setting(MIB, 8, True)
    assert best.changes == {"direct_io": "auto", "write_threads": 8, "write_size": "1MiB"}


@pytest.mark.parametrize("other", [[1.03, 1.13, 1.03], [3.0, 0.9, 3.0]])
def test_the_present_setting_stays_when_another_is_hardly_faster_or_only_mostly(other: list[float]) -> None:
    best = best_of(measured({PRESENT: [1.0, 1.1, 1.0], Setting(MIB, 8, True): other}, PRESENT), posix())
    assert best.setting == PRESENT
    assert best.changes == {}


def test_buffered_is_advised_as_never_and_direct_as_the_operator_has_it() -> None:
    buffered, direct = Setting(4 * MIB, 4, False), PRESENT
    to_buffered = best_of(measured({direct: [1, 1], buffered: [2, 2]}, direct), posix(direct_io="always"))
    to_direct = best_of(measured({direct: [2, 2], buffered: [1, 1]}, buffered), posix(direct_io="never"))
    assert to_buffered.changes["direct_io"] == "never"
    assert to_direct.changes["direct_io"] == "auto"


def test_an_s3_tier_is_told_where_to_begin() -> None:
    tier = TierSettings.model_validate({"name": "s3", "kind": "object", "url": "s3://b"})
    present, other = Setting(16 * MIB, 16), Setting(128 * MIB, 32)
    best = best_of(measured({present: [1, 1], other: [2, 2]}, present, "object"), tier)
    told = {"part_size": "128MiB", "part_size_most": "128MiB", "parallel_start": 32, "parallel": 32}
    assert best.changes == {"options": told}
    assert TierSettings.model_validate({**tier.model_dump(), **best.changes}).options == told


def test_huge_pages_change_only_when_the_other_way_is_clearly_faster() -> None:
    assert best_huge_pages({True: [1.0, 1.0], False: [2.0, 2.0]}, present=False) is True
    assert best_huge_pages({True: [1.0, 1.0], False: [2.0, 2.0]}, present=True) is True
    assert best_huge_pages({True: [1.0, 2.0], False: [1.5, 1.0]}, present=False) is False


def test_clearly_less_is_less_each_time_and_by_a_twentieth() -> None:
    assert clearly_less([1.0, 1.0], [1.1, 1.1])
    assert not clearly_less([1.0, 1.0], [1.04, 1.04])
    assert not clearly_less([1.0, 1.2], [1.5, 1.1])


# --- the operator's file -----------------------------------------------------------------------------------------------------------------


def test_applying_keeps_comments_order_mode_and_everything_else(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(CONFIGURATION, "utf-8")
    file.chmod(0o640)
    changes = {"nvme": {"direct_io": "auto", "write_threads": 8, "write_size": "1MiB"}, "s3": {"options": {"parallel": 32}}}
    assert apply_changes({**changes, "memory": {"huge_pages": False}}, tmp_path) == file
    text = file.read_text("utf-8")
    comments = [line.partition("#")[2] for line in CONFIGURATION.splitlines() if "#" in line]
    assert len(comments) == 5
    assert all(f"#{comment}" in text for comment in comments)
    settings = read_settings(home=tmp_path)
    nvme, s3 = settings.tiers
    assert (nvme.direct_io, nvme.write_threads, nvme.write_size) == ("auto", 8, MIB)
    assert s3.options == {"region": "eu-central-1", "parallel": 32}
    assert 'options = {region = "eu-central-1", parallel = 32} # Frankfurt' in text
    assert settings.memory.huge_pages is False
    assert settings.grace_s == 60.0
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [found.name for found in tmp_path.iterdir()] == ["config.toml"]


def test_without_a_file_the_default_tier_is_written_out_and_stays_where_it_was(tmp_path: Path) -> None:
    before = read_settings(home=tmp_path).effective_tiers
    apply_changes({"nvme": {"write_threads": 2}}, tmp_path)
    after = read_settings(home=tmp_path).effective_tiers
    assert [tier.model_copy(update={"write_threads": 6}) for tier in after] == list(before)
    assert after[0].write_threads == 2


def test_options_in_a_table_of_their_own_stay_one(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    own = CONFIGURATION.replace('options = { region = "eu-central-1" } # Frankfurt', '[tiers.options]\nregion = "eu-central-1" # Frankfurt')
    file.write_text(own, "utf-8")
    apply_changes({"s3": {"options": {"parallel": 32}}}, tmp_path)
    assert file.read_text("utf-8") == own + "parallel = 32\n"


def test_what_the_daemon_would_refuse_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(CONFIGURATION, "utf-8")
    with pytest.raises(ConfigInvalid):
        apply_changes({"nvme": {"write_threads": 1000}}, tmp_path)
    with pytest.raises(ConfigInvalid, match="pfs"):
        apply_changes({"pfs": {"write_threads": 2}}, tmp_path)
    assert file.read_text("utf-8") == CONFIGURATION
    assert [found.name for found in tmp_path.iterdir()] == ["config.toml"]


def test_a_linked_configuration_is_changed_where_it_is(tmp_path: Path) -> None:
    real = tmp_path / "etc" / "ckptstore.toml"
    real.parent.mkdir()
    real.write_text(CONFIGURATION, "utf-8")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/config.toml").symlink_to(real)
    apply_changes({"nvme": {"write_threads": 2}}, tmp_path / "home")
    assert (tmp_path / "home/config.toml").is_symlink()
    assert read_settings(real, home=tmp_path / "home").tiers[0].write_threads == 2


# --- how it is measured ------------------------------------------------------------------------------------------------------------------


def test_threads_take_every_piece_once() -> None:
    taken: list[tuple[int, int]] = []
    timing = in_threads(3, pieces_of(1000, 64), lambda start, stop, buffer: taken.append((start, stop)))
    assert sorted(taken) == [(start, min(1000, start + 64)) for start in range(0, 1000, 64)]
    assert timing.size_bytes == 1000
    assert len(timing.latencies_s) == 16


def test_an_error_in_a_thread_is_the_measurements() -> None:
    def fail(start: int, stop: int, buffer: memoryview) -> None:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        in_threads(2, pieces_of(4, 1), fail)


def test_random_reads_are_of_whole_pages_inside_and_the_same_in_each_run() -> None:
    offsets = random_offsets(8 * 4096, 500, number=1)
    assert set(offsets) == {page * 4096 for page in range(8)}
    assert offsets == random_offsets(8 * 4096, 500, number=1) != random_offsets(8 * 4096, 500, number=2)


def test_percentiles_are_of_the_nearest_rank() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, p) for p in (0, 50, 99, 100)] == [1.0, 51.0, 100.0, 100.0]
    assert percentile([], 50) is None


def test_a_setting_is_written_as_people_say_it() -> None:
    assert [shown(Setting(4 * MIB, 8, True)), shown(Setting(64 << 10, 1, False)), shown(Setting(16 * MIB, 4))] == [
        "4 MiB × 8, direct", "64 KiB × 1, buffered", "16 MiB × 4",
    ]  # fmt: skip
