"""In which order do the files run, and on which examples? Those that take minutes first: beside them the quick ones fill the other
processes to the end. pytest-xdist's own order, most tests first, leaves the long stories with few tests for the end, where each runs alone.

Property tests draw the same examples in every `make test`, so that what passes on one machine passes on the next; new ones in `make soak`
and wherever pytest is called without `--hypothesis-profile=same`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.services.postgres import Postgres

settings.register_profile("same", derandomize=True)

#: By what they took, longest first; a file that is not named comes after them, and costs at most its own time at the end.
LONG_FILES = (
    "test_bench_save_load.py",
    "test_object_kill.py",
    "test_daemon_kill.py",
    "test_object_faults.py",
    "test_long_run.py",
    "test_reads_per_node.py",
    "test_rank_death.py",
    "test_damage.py",
    "test_daemon_power_cut.py",
    "test_demo.py",
    "test_store_outages.py",
    "test_full_and_failing_disks.py",
    "test_two_nodes.py",
    "test_catalog_sqlite.py",
    "test_large_tensor.py",
    "test_bench_checkpoint.py",
    "test_posix_faults.py",
    "test_asked_ranks.py",
    "test_fsspec_contract.py",
    "test_cli.py",
    "test_store.py",
    "test_faults_with_everything_on.py",
    "test_catalog_postgres.py",
    "test_recall.py",
    "test_recall_with_everything_on.py",
    "test_auto_start.py",
    "test_bench_dcp.py",
    "test_bench_tiers.py",
    "test_bench_s3.py",
    "test_api_refusals.py",
    "test_hostile_clients.py",
    "test_trainer_kill.py",
    "test_dcp.py",
    "test_deepspeed.py",
    "test_retention.py",
    "test_attached_s3.py",
    "test_object_tier.py",
    "test_distributed_fs.py",
    "test_lightning.py",
    "test_rebuild.py",
    "test_lightning_sharded.py",
    "test_huggingface.py",
    "test_store_machine.py",
    "test_incremental_machine.py",
    "test_record_damage.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    on_device = [item for item in items if item.get_closest_marker("cuda") is not None]
    if on_device and not any(Path("/dev").glob("nvidia[0-9]*")):
        items[:] = [item for item in items if item not in on_device]
        config.hook.pytest_deselected(items=on_device)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.stop()
