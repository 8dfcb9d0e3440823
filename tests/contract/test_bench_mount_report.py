"""What `bench mount` makes of the seconds it measured."""

from __future__ import annotations

from ckptstore_bench.mount.measuring import Results
from ckptstore_bench.mount.mount_report import build, figures


def results() -> Results:
    found = Results(size_bytes=1 << 30)
    for measure, seconds in {
        "hot sequential": {"disk": [1.0, 1.0], "ckptstore": [1.0, 2.0], "s3fs": [4.0, 3.0]},
        "cold sequential": {"ckptstore": [2.0, 4.0], "s3fs": [3.0, 5.0], "rclone": [5.0, 4.0]},
        "cold download": {"boto3": [1.0, 3.0], "boto3-crt": [2.0, 2.0], "rclone copyto": [9.0]},
        "stat": {"disk": [1.0, 1.0], "ckptstore": [2.0, 2.0]},
        "ls": {"disk": [1.0, 1.0], "ckptstore": [1.0, 1.0]},
        "open+close": {"disk": [1e-6, 1e-6], "ckptstore": [5e-5, 7e-5]},
        "cold first byte": {"ckptstore": [0.025, 0.035], "get": [0.02, 0.02], "s3fs": [0.2]},
    }.items():
        for name, values in seconds.items():
            for value in values:
                found.add(measure, name, value)
    found.sent = [1.001, 3.0]
    found.why_not["rclone copyto"] = "it failed in the second round"
    return found


def test_a_cold_file_is_held_against_the_fastest_mount_and_the_fastest_download_of_each_round() -> None:
    values = {figure.name: list(figure.values) for figure in figures(results())}
    assert values["mount.cold.sequential.peers"] == [1.5, 1.0]
    assert values["mount.cold.sequential.clients"] == [0.5, 0.5]
    assert values["mount.origin"] == [1.001, 3.0]
    assert values["mount.hot.sequential.disk"] == [1.0, 0.5]
    assert [round(value, 6) for value in values["mount.first_byte"]] == [1.0, 1.5]


def test_each_table_has_who_was_measured_there_and_who_could_not_run() -> None:
    reading, looking = build(results(), rounds=2, settings={}, machine={}).tables
    mounts, clients = ["disk", "ckptstore", "s3fs", "rclone"], ["boto3", "boto3-crt", "rclone copyto"]
    assert [row["who"] for row in reading.rows] == [*mounts, *clients, "rclone copyto"]
    assert reading.rows[-1]["why_not"] == "it failed in the second round"
    assert [row["who"] for row in looking.rows] == ["disk", "ckptstore", "s3fs", "get"]
