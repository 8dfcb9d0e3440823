"""The command line as people and scripts use it: a process of its own, against a real daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from ckptstore import errors
from ckptstore_bench.ports import free_port
from tests.daemon_process import DaemonProcess, write_config
from tests.e2e.shell import TIMEOUT_S, Shell
from tests.until import until

ODD_NAME = "we[red]ird \"quo'te\".bin"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A home with a daemon: an NVMe tier, and a folder that stands for the parallel file system."""
    home = tmp_path_factory.mktemp("cli")
    nvme = {"name": "nvme", "kind": "posix", "path": home / "nvme"}
    write_config(home, tiers=[nvme, {"name": "pfs", "kind": "posix", "path": home / "pfs", "shared": True}], grace_s=0)
    with DaemonProcess(home):
        yield Shell(home)


@pytest.fixture
def bare(tmp_path: Path) -> Shell:
    """A home where nothing is."""
    return Shell(tmp_path / "home")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "sub").mkdir(parents=True)
    (made / "a.txt").write_text("hello")
    (made / "sub" / ODD_NAME).write_bytes(os.urandom(5_000_000))
    return made


# --- files in and out -------------------------------------------------------------------------------------------------------------


def test_what_is_put_is_listed_and_comes_back_identical(served: Shell, folder: Path, tmp_path: Path) -> None:
    put = served.ok("put", folder, "/whole/model", "--json").document
    assert (put["path"], put["kind"], put["files"], put["size_bytes"]) == ("/whole/model", "folder", 2, 5_000_005)
    assert put["durability"] and put["published_at"].endswith("Z")
    assert [entry["path"] for entry in served.ok("ls", "-r", "/whole", "--json").lines] == [
        "/whole/model",
        "/whole/model/a.txt",
        "/whole/model/sub",
        f"/whole/model/sub/{ODD_NAME}",
    ]
    got = served.ok("get", "/whole/model", "back", "--json", cwd=tmp_path).document
    assert got["local"] == str(tmp_path / "back")
    for name in ("a.txt", f"sub/{ODD_NAME}"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    usage = {"path": "/whole", "publications": 1, "files": 2, "size_bytes": 5_000_005, "kept_bytes": 0, "referred_bytes": 0}
    assert served.ok("du", "/whole", "--json").document == usage | {"attached": [], "complete": True}


def test_wait_returns_when_the_tier_holds_it_and_verify_reads_every_replica(served: Shell, folder: Path) -> None:
    served.ok("put", folder, "/kept")
    waited = served.ok("wait", "/kept", "pfs", "--timeout", "60", "--json").document
    assert waited["durability"] == ["nvme", "pfs"]
    *lines, last = served.ok("verify", "/kept", "--json").lines
    assert sorted((line["path"], line["tier"]) for line in lines if not line["record"]) == sorted(
        (f"/kept/{name}", tier) for name in ("a.txt", f"sub/{ODD_NAME}") for tier in ("nvme", "pfs")
    )
    assert [(line["path"], line["tier"]) for line in lines if line["record"]] == [("/kept", "nvme"), ("/kept", "pfs")]
    assert (last["done"], last["replicas"], last["records"], last["problems"]) == (True, 4, 2, 0)
    assert served.ok("verify", "/kept").out == "4 replicas and 2 commit records read, 0 problems\n"


def test_verify_repairs_what_is_damaged_and_tells_what_stays(served: Shell, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100_000)
    served.ok("put", file, "/damaged")
    served.ok("wait", "/damaged", "pfs", "--timeout", "60")

    def damage(tier: str) -> None:
        (stored,) = (served.home / tier / "objects").glob("damaged~*")
        stored.chmod(0o600)
        stored.write_bytes(b"y" + stored.read_bytes()[1:])

    damage("pfs")
    mended = served.ok("verify", "/damaged")
    assert "/damaged in pfs: " in mended.out and "1 of them repaired" in mended.out
    damage("pfs")
    damage("nvme")
    lost = served("verify", "/damaged", "--json")
    assert lost.code == errors.ChecksumMismatch.exit_code
    assert lost.error["error"] == "checksum_mismatch"
    assert [line["repaired"] for line in lost.lines if line["problem"]] == [False, False]


def test_replace_has_to_be_asked_for_on_both_ways(served: Shell, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    served.ok("put", file, "/twice")
    refused = served("put", file, "/twice")
    assert refused.code == errors.AlreadyExists.exit_code and "--replace" in refused.err
    file.write_text("two")
    served.ok("put", file, "/twice", "--replace")
    refused = served("get", "/twice", file)
    assert refused.code == errors.AlreadyExists.exit_code and "--replace" in refused.err
    target = tmp_path / "back"
    target.write_text("old")
    served.ok("get", "/twice", target, "--replace")
    assert target.read_text() == "two"


def test_removing_a_folder_needs_r_and_says_what_went(served: Shell, folder: Path) -> None:
    served.ok("put", folder / "a.txt", "/gone/one")
    served.ok("put", folder / "a.txt", "/gone/two")
    assert served("mv", "/gone/one", "/gone/two").code == errors.AlreadyExists.exit_code
    assert served.ok("mv", "/gone/one", "/gone/three", "--json").document == {"moved": ["/gone/three"]}
    assert served.ok("mv", "/gone/three", "/gone/one").out == "now at /gone/one\n"
    assert served("rm", "/gone").code == errors.PathConflict.exit_code
    assert served.ok("rm", "-r", "/gone", "--json").document == {"removed": ["/gone/one", "/gone/two"]}
    assert served("stat", "/gone").code == errors.NotFound.exit_code


# --- how it prints ----------------------------------------------------------------------------------------------------------------


def test_text_shows_names_as_they_are_and_folders_with_a_slash(served: Shell, folder: Path) -> None:
    served.ok("put", folder, "/shown/[bold]model")
    assert served.ok("ls", "/shown").out == "[bold]model/\n"
    assert served.ok("ls", "-r", "/shown").out.splitlines()[-1] == f"/shown/[bold]model/sub/{ODD_NAME}"
    long = served.ok("ls", "-l", "/shown").out.splitlines()
    assert long[0].split() == ["KIND", "SIZE", "STEP", "AGO", "SAFE", "IN", "NAME"]
    assert "4.8 MiB" in long[1] and long[1].endswith("[bold]model/")
    facts = dict(line.split(maxsplit=1) for line in served.ok("stat", "/shown/[bold]model").out.splitlines())
    assert facts["size"] == "4.8 MiB (5,000,005 bytes)"


def test_a_pipe_gets_no_escape_and_no_progress(served: Shell, folder: Path) -> None:
    outcomes = [served.ok("put", folder, "/quiet"), served.ok("verify", "/quiet"), served.ok("status"), served.ok("ls", "-l", "/quiet")]
    for outcome in outcomes:
        assert "\x1b" not in outcome.out
        assert outcome.err == ""


def test_a_terminal_gets_a_bar_and_the_result(served: Shell, folder: Path) -> None:
    code, seen = served.on_terminal("put", folder, "/terminal")
    assert code == 0
    assert "putting" in seen and "━" in seen
    assert "put /terminal (4.8 MiB, 2 files)" in seen


def test_the_bar_is_on_stderr_and_stdout_has_the_result_alone(served: Shell, folder: Path, tmp_path: Path) -> None:
    """With stderr a terminal and stdout a pipe: what another program reads has no bar and no escape in it."""
    for arguments, shown, result in (
        (("put", folder, "/piped"), "putting model", "put /piped (4.8 MiB, 2 files)\n"),
        (("get", "/piped", tmp_path / "back"), "getting piped", "got /piped (4.8 MiB)\n"),
        (("wait", "/piped", "pfs", "--timeout", "60"), "waiting until pfs holds", "/piped is safe in nvme, pfs\n"),
        (("verify", "/piped"), "verifying files", "4 replicas and 2 commit records read, 0 problems\n"),
    ):
        outcome = served.with_stdout_piped(*arguments)
        assert (outcome.code, outcome.out) == (0, result), outcome
        assert shown in outcome.err and "━" in outcome.err and "\x1b" in outcome.err
        assert result.strip() not in outcome.err


def test_global_options_stand_before_or_after_the_command(served: Shell, bare: Shell) -> None:
    for arguments in (("--home", served.home, "--json", "status"), ("status", "--json", "--home", served.home)):
        assert bare.ok(*arguments).document["home"] == str(served.home)
    assert bare.ok("config", "--home", served.home, "path").out == f"{served.home}/config.toml\n"


def test_a_reader_that_has_seen_enough_causes_no_traceback(served: Shell, folder: Path) -> None:
    served.ok("put", folder, "/pipe")
    ours, theirs = os.pipe()
    os.close(ours)
    process = served.start("ls", "-r", "/", stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (141, b"")


# --- errors -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("stat", "/nowhere"), errors.NotFound),
        (("get", "/nowhere", "x"), errors.NotFound),
        (("put", "/no/such/file", "/x"), errors.NotFound),
        (("stat", "relative"), errors.InvalidInput),
        (("wait", "/any", "no-such-tier"), errors.InvalidInput),
        (("ls", "--no-such-option"), errors.InvalidInput),
        (("wait", "/any"), errors.InvalidInput),
        (("no-such-command",), errors.InvalidInput),
        (("wait", "/any", "pfs", "--timeout", "-1"), errors.InvalidInput),
        (("stat", "/a\x1b[2J\nforged"), errors.InvalidInput),
    ],
)
def test_an_error_is_one_line_a_document_and_its_exit_code(
    served: Shell, arguments: tuple[str, ...], error: type[errors.CkptStoreError], tmp_path: Path
) -> None:
    outcome = served(*arguments, "--json", cwd=tmp_path)
    assert outcome.code == error.exit_code, outcome
    assert outcome.out == ""
    assert outcome.error["error"] == error.code
    assert len(outcome.err.splitlines()) == 2
    assert "\x1b" not in outcome.err


def test_a_wait_that_ends_in_time_says_where_it_is(served: Shell, folder: Path) -> None:
    served.ok("put", folder / "a.txt", "/late")
    (blocked := served.home / "pfs").rename(served.home / "pfs-away")
    try:
        blocked.write_text("not a folder")
        served.ok("put", folder / "a.txt", "/late", "--replace")
        outcome = served("wait", "/late", "pfs", "--timeout", "0.2")
        assert outcome.code == errors.WaitTimeout.exit_code, outcome
        assert "not in pfs after 0.2 s (nvme)" in outcome.err
        until("its error is known", lambda: served.ok("status", "--json").document["tiers"][1]["last_error"])
        assert "its last error: " in served("wait", "/late", "pfs", "--timeout", "0.2").err
    finally:
        blocked.unlink()
        (served.home / "pfs-away").rename(blocked)


def test_ctrl_c_ends_a_wait_with_130_and_one_line(bare: Shell) -> None:
    bare.home.mkdir()
    write_config(bare.home, tiers=[{"name": "nvme", "kind": "posix", "path": bare.home / "nvme"}])
    with DaemonProcess(bare.home):
        process = bare.start("status", "--watch", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["stopping"] is False  # it runs, and waits for its next look
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert err.splitlines()[0] == b"ckptstore: interrupted"
    assert b"Traceback" not in err


# --- the daemon's life ------------------------------------------------------------------------------------------------------------


def test_status_and_stop_start_no_daemon(bare: Shell) -> None:
    for command in ("status", "stop"):
        outcome = bare(command, "--json")
        assert outcome.code == errors.DaemonUnavailable.exit_code
        assert outcome.error["error"] == "daemon_unavailable" and "ckptstore serve" in outcome.error["hint"]
    assert not bare.home.exists()


def test_a_daemon_is_served_detached_refused_twice_stopped_and_served_again(bare: Shell) -> None:
    served = bare.ok("serve", "--detach", "--json").document
    try:
        assert bare.ok("status", "--json").document["hello"]["pid"] == served["pid"]
        again = bare("serve", "--detach")
        assert again.code == errors.AlreadyRunning.exit_code and str(served["pid"]) in again.err
        in_front = bare("serve", "--foreground")
        assert in_front.code == errors.AlreadyRunning.exit_code
    finally:
        assert bare.ok("stop", "--json").document == {"stopped": True, "pid": served["pid"], "home": str(bare.home)}
    assert bare("stop").code == errors.DaemonUnavailable.exit_code
    # `stop` returned, so the home is free: a new daemon meets no lock.
    assert bare.ok("serve", "--detach", "--json").document["store"] == served["store"]
    bare.ok("stop")


def test_a_daemon_that_cannot_start_says_why(bare: Shell) -> None:
    write_config(bare.home, tiers=[{"name": "nvme", "kind": "tape"}])
    outcome = bare("serve", "--detach")
    assert outcome.code == errors.ConfigInvalid.exit_code
    assert "tiers.0.kind" in outcome.err


def test_a_command_that_needs_a_daemon_starts_one(bare: Shell) -> None:
    try:
        assert bare.ok("ls", "--json").out == ""
        assert bare.ok("status", "--json").document["counts"]["publications"] == 0
    finally:
        bare.ok("stop")


def test_a_lost_catalog_is_rebuilt_but_not_under_a_running_daemon(bare: Shell, folder: Path) -> None:
    bare.ok("put", folder, "/kept/model")
    bare.ok("put", folder / "a.txt", "/removed")
    bare.ok("rm", "/removed")
    refused = bare("catalog", "rebuild", "--yes", "--json")
    assert refused.code == errors.AlreadyRunning.exit_code
    assert refused.error["error"] == "already_running"
    bare.ok("stop")
    for file in bare.home.glob("catalog.sqlite3*"):
        file.unlink()
    lost = bare("serve", "--foreground")
    assert lost.code == errors.WrongStore.exit_code and "catalog rebuild" in lost.err
    rebuilt = bare.with_stdout_piped("catalog", "rebuild", "--yes", "--json")
    assert rebuilt.code == 0 and "looking for objects that no record names" in rebuilt.err  # of what was removed
    report = rebuilt.document
    assert (report["restored"], report["incomplete"], report["unreadable"]) == (1, [], [])
    try:
        assert [entry["path"] for entry in bare.ok("ls", "-r", "--json").lines if entry["kind"] == "file"] == [
            "/kept/model/a.txt",
            f"/kept/model/sub/{ODD_NAME}",
        ]
    finally:
        bare.ok("stop")


def test_check_tells_a_full_tier_from_one_that_is_well(served: Shell) -> None:
    assert served.ok("status", "--check", "--json").document["tiers"][0]["state"] == "ok"


def test_another_node_is_reached_by_url_and_token_and_refused_without(tmp_path: Path, folder: Path) -> None:
    port = free_port()
    far, near = Shell(tmp_path / "far"), Shell(tmp_path / "near")
    tiers = [{"name": "nvme", "kind": "posix", "path": far.home / "nvme"}]
    write_config(far.home, tiers=tiers, listen=f"127.0.0.1:{port}", token="long enough")
    there = ("--url", f"http://127.0.0.1:{port}", "--token", "long enough")
    with DaemonProcess(far.home):
        near.ok(*there, "put", folder, "/far/model")
        near.ok(*there, "get", "/far/model", tmp_path / "back")
        assert (tmp_path / "back" / "sub" / ODD_NAME).read_bytes() == (folder / "sub" / ODD_NAME).read_bytes()
        assert near.ok(*there, "status", "--json").document["home"] == str(far.home)
        assert near("stop", *there).code == errors.InvalidInput.exit_code
        assert near("ls", *there[:2], "--token", "wrong token").code == errors.Unauthorized.exit_code
    assert not near.home.exists()


# --- configuration, help ----------------------------------------------------------------------------------------------------------


def test_config_init_writes_once_and_the_daemon_takes_what_it_wrote(bare: Shell) -> None:
    place = Path(bare.ok("config", "init", "--json").document["path"])
    assert place == bare.home / "config.toml" and place.stat().st_mode & 0o777 == 0o600
    assert tomllib.loads(place.read_text("utf-8")) == {}
    assert bare("config", "init").code == errors.AlreadyExists.exit_code
    bare.ok("config", "init", "--force")
    checked = bare.ok("config", "check", "--json").document
    assert checked["ok"] and checked["exists"] and "not survive the loss of this node" in checked["warnings"][0]
    assert bare.ok("config", "show", "--json").document["tiers"][0]["path"] == str(bare.home / "nvme")


def test_config_check_names_the_fault(bare: Shell, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("drain_worker = 2\n")
    outcome = bare("config", "check", file)
    assert outcome.code == errors.ConfigInvalid.exit_code
    assert "drain_worker" in outcome.err and str(file) in outcome.err


@pytest.mark.parametrize(
    "command",
    [
        *("serve", "stop", "status", "ls", "stat", "du", "put", "get", "rm", "mv", "wait", "verify", "version"),
        *("snapshot", "tag", "cat", "diff"),
        *("config init", "config show", "config path", "config check", "catalog rebuild"),
    ],
)
def test_every_command_has_help_with_an_example(command: str, bare: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    from ckptstore_client.cli.main import run

    assert run([*command.split(), "--help"]) == 0
    assert f"ckptstore {command}" in capsys.readouterr().out.split("Example: ", 1)[1]


def test_the_installed_command_is_this_one() -> None:
    (script,) = entry_points(group="console_scripts", name="ckptstore")
    assert script.value == "ckptstore_client.cli.main:main"
