"""What the configuration promises: defaults that work, precedence, refusals by name, and a template that cannot go stale."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from ckptstore.config import (
    CacheSettings,
    HuggingFaceSettings,
    MemorySettings,
    QuietSettings,
    Settings,
    TierSettings,
    config_file,
    parse_size,
    read_settings,
)
from ckptstore.errors import ConfigInvalid
from ckptstore.retention import EveryNSteps, LatestN
from ckptstore_client.cli.config_template import EXAMPLE_KEEP, EXAMPLE_TIERS, as_toml, fields, round_size, template, toml
from ckptstore_tiers.s3_options import S3Options


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine that runs the tests counts."""
    import os

    for name in [name for name in os.environ if name.startswith("CKPTSTORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(text, "utf-8")
    return file


def settings_lines(text: str) -> str:
    """The template with every commented setting switched on; prose stays commented (`# …`, with a blank)."""
    return re.sub(r"(?m)^#(?=[a-z\[])", "", text)


# --- defaults and precedence -------------------------------------------------------------------------------------------------------------


def test_with_no_file_there_is_sqlite_and_one_nvme_tier_under_the_home_and_no_port(tmp_path: Path) -> None:
    settings = read_settings()
    home = tmp_path / "user" / ".ckptstore"
    assert settings.home == home
    assert [(t.name, t.kind, t.path, t.durable, t.is_shared) for t in settings.effective_tiers] == [
        ("nvme", "posix", home / "nvme", True, False)
    ]
    assert settings.effective_catalog_url == f"sqlite:///{home}/catalog.sqlite3"
    assert settings.listen is None


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "drain_workers = 3\ngrace_s = 1.0\nattempt_timeout_s = 5.0\n[memory]\nslots = 3\nlimit = '1GiB'\n")
    monkeypatch.setenv("CKPTSTORE_DRAIN_WORKERS", "4")
    monkeypatch.setenv("CKPTSTORE_GRACE_S", "2")
    monkeypatch.setenv("CKPTSTORE_MEMORY__SLOTS", "5")
    settings = read_settings(file, grace_s=9.0)
    assert (settings.attempt_timeout_s, settings.drain_workers, settings.grace_s) == (5.0, 4, 9.0)
    assert (settings.memory.slots, settings.memory.limit) == (5, 1 << 30)


def test_the_home_names_the_file_unless_the_environment_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_file(tmp_path) == tmp_path / "config.toml"
    monkeypatch.setenv("CKPTSTORE_CONFIG", "/etc/ckptstore.toml")
    assert config_file(tmp_path) == Path("/etc/ckptstore.toml")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("8GiB", 8 << 30), ("500MB/s", 500_000_000), ("1.5 KiB", 1536), (17, 17), ("17", 17), ("2tib", 2 << 40), ("3 GB", 3 * 10**9)],
)
def test_a_size_may_be_written_with_its_unit(text: object, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


# --- refusals ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("drain_worker = 2\n", "drain_worker"),
        ("drain_workers = 0\n", "drain_workers"),
        ("grace_s = -1\n", "grace_s"),
        ("[memory]\nslots = 65\n", "memory.slots"),
        ("[memory]\nlimit = 'much'\n", "memory.limit"),
        ("[memory]\ncompression = 'zstd'\n", "memory is never compressed"),
        ("[[tiers]]\nname = 'a'\nkind = 'posix'\npath = '/x'\ncompression = 'lz4'\n", "tiers.0.compression"),
        ("listen = '127.0.0.1:8900'\n", "token"),
        ("listen = '8900'\ntoken = 'long enough'\n", "host:port"),
        ("listen = '127.0.0.1:99999'\ntoken = 'long enough'\n", "host:port"),
        ("[[tiers]]\nname = 'a'\nkind = 'posix'\npath = 'relative'\n", "absolute"),
        ("[[tiers]]\nname = 'a'\nkind = 'object'\npath = '/x'\n", "url"),
        ("[[tiers]]\nname = 'a'\nkind = 'tape'\n", "tiers.0.kind"),
        ("[[tiers]]\nname = 'memory'\nkind = 'posix'\npath = '/x'\n", "taken"),
        ("[[tiers]]\nname = 'a'\nkind = 'posix'\npath = '/x'\nlow_water = 0.95\n", "low_water"),
        ("[[tiers]]\nname = 'a'\nkind = 'posix'\npath = '/x'\ndurable = false\n", "durable"),
        ("[[tiers]]\nname = 'a'\nkind = 'posix'\npath = '/x'\n" * 2, "same name"),
        ("drain_workers = \n", "line 1"),
    ],
)
def test_what_is_wrong_is_refused_by_its_name_and_file(tmp_path: Path, text: str, named: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigInvalid) as caught:
        read_settings(file)
    assert named in str(caught.value)
    assert caught.value.subject == str(file)
    assert "\n" not in str(caught.value)


def test_a_named_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="No such file"):
        read_settings(tmp_path / "none.toml")


# --- the template ------------------------------------------------------------------------------------------------------------------------


def test_the_template_as_it_is_written_gives_the_defaults(tmp_path: Path) -> None:
    assert read_settings(written(tmp_path, template())) == Settings()


@pytest.mark.parametrize(
    ("model", "table"), [(Settings, None), (MemorySettings, "memory"), (QuietSettings, "quiet"), (HuggingFaceSettings, "hugging_face")]
)
def test_every_field_stands_in_the_template_with_its_default(model: type[BaseModel], table: str | None) -> None:
    document = tomllib.loads(settings_lines(template()))
    document = document[table] if table else document
    values = {name: field for name, field in model.model_fields.items() if name not in ("memory", "quiet", "hugging_face", "tiers")}
    assert set(values) <= set(document)
    switched_on: Any = model(**{name: document[name] for name in values})
    for setting in fields(model):
        if setting.default is not None:
            assert getattr(switched_on, setting.name) == getattr(model(), setting.name), setting.name


def test_every_field_has_its_reason_and_every_unset_one_an_example() -> None:
    for model in (Settings, MemorySettings, QuietSettings, CacheSettings, HuggingFaceSettings, TierSettings):
        for name, field in model.model_fields.items():
            assert field.description or name in ("memory", "quiet", "cache", "hugging_face"), f"{model.__name__}.{name} has no description"
    for setting in [*fields(Settings), *fields(MemorySettings), *fields(QuietSettings)]:
        assert setting.default is not None or setting.example not in ("", 0, False), f"{setting.name} is unset and has no example"


def test_every_field_of_a_tier_is_explained_in_the_template() -> None:
    text = template()
    for name in TierSettings.model_fields:
        assert f"\n#   {name}: " in text, name


def test_the_example_tiers_are_valid(tmp_path: Path) -> None:
    settings = read_settings(written(tmp_path, settings_lines(EXAMPLE_TIERS)))
    found = [(tier.name, tier.kind, tier.is_shared) for tier in settings.tiers]
    assert found == [("nvme", "posix", False), ("pfs", "posix", True), ("s3", "object", True)]


def test_the_whole_template_switched_on_is_valid(tmp_path: Path) -> None:
    settings = read_settings(written(tmp_path, settings_lines(template())))
    assert settings.listen == "127.0.0.1:8900"
    assert len(settings.tiers) == 3
    assert [(kept.folder, kept.parsed) for kept in settings.keep] == [("/runs/gpt", (LatestN(n=3), EveryNSteps(steps=1000)))]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('policies = "newest:3"', "newest:3"),
        ('policies = ""', "between 1 and"),
        ('policies = "latest:3"\ntier = "tape"', "'tape'"),
        ('policies = "latest:3"\nsafe_in = "tape"', "'tape'"),
        ('policies = "latest:3"\ntrash = "soon"', "soon"),
    ],
)
def test_what_is_kept_is_checked_before_a_daemon_starts(tmp_path: Path, line: str, fault: str) -> None:
    with pytest.raises(ConfigInvalid, match=fault):
        read_settings(written(tmp_path, f'[[keep]]\nfolder = "/runs/gpt"\n{line}\n'))


def test_what_config_show_prints_gives_the_same_settings_again(tmp_path: Path) -> None:
    settings = read_settings(written(tmp_path, "grace_s = 7\n" + settings_lines(EXAMPLE_TIERS + EXAMPLE_KEEP)))
    again = read_settings(written(tmp_path, as_toml(settings)))
    assert (again.tiers, again.grace_s, again.memory, again.home) == (settings.tiers, 7.0, settings.memory, settings.home)
    assert again.keep == settings.keep


def test_config_show_tells_no_secret(tmp_path: Path) -> None:
    file = written(tmp_path, 'token = "s3cret-token"\ncatalog_url = "postgresql://user:s3cret-word@db/x"\n')
    assert "s3cret" not in as_toml(read_settings(file))


@pytest.mark.parametrize("size_bytes", [0, 1, 1000, 1024, 1025, 64 << 20, 1 << 40, (1 << 40) + 1])
def test_a_size_in_the_template_means_exactly_its_number(size_bytes: int) -> None:
    assert parse_size(round_size(size_bytes)) == size_bytes


def test_toml_values_survive_quotes_and_escapes() -> None:
    odd = 'a "quoted" \\ path \x7f \U0001f680'
    assert tomllib.loads(f"x = {toml(odd)}")["x"] == odd


# --- the page in docs/ ----------------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")


SETTINGS_PART, OPTIONS_PART = PAGE.split("### S3\n")


def table_rows(text: str) -> dict[str, str]:
    """Name → default of every line of a table."""
    rows = {row[1].strip(" `"): row[2].strip(" `") for line in text.splitlines() if (row := line.split("|")) and len(row) == 6}
    return {name: default for name, default in rows.items() if name not in ("setting", "option", "---")}


def test_the_page_lists_every_field_with_its_default() -> None:
    rows = table_rows(SETTINGS_PART)
    for model in (Settings, MemorySettings, QuietSettings, CacheSettings, HuggingFaceSettings, TierSettings):
        for setting in fields(model):
            shown = rows.pop(setting.name)
            if setting.default is not None and setting.name != "home":
                assert tomllib.loads(f"x = {shown}")["x"] == setting.default, setting.name
    assert not rows, "the page has settings that are none"


def test_the_page_lists_every_option_of_s3_with_its_default() -> None:
    rows = table_rows(OPTIONS_PART)
    assert set(rows) == set(S3Options.model_fields)
    for name, field in S3Options.model_fields.items():
        if field.default is not None:
            shown = tomllib.loads(f"x = {rows[name]}")["x"]
            assert getattr(S3Options.model_validate({name: shown}), name) == field.default, name


def test_the_example_on_the_page_is_valid(tmp_path: Path) -> None:
    (example,) = re.findall(r"(?s)```toml\n(.*?)```", PAGE)
    assert len(read_settings(written(tmp_path, example)).tiers) == 3
