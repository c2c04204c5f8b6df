"""python -m pnfrec_dist.recommend over real Ray: every user once, equal to lists made one by one, also after a kill."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.commands import called
from helpers.tiny_training import SETTINGS, trained
from helpers.waiting import wait_until

from pnfrec_dist import recommend
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.data.user_histories import read_users, user_parts
from pnfrec_dist.inference.list_maker import LIST_SCHEMA, Filters, ListMaker, ListSettings
from pnfrec_dist.inference.trained_model import open_trained

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
USERS = 600


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> PreparedData:
    directory = tmp_path_factory.mktemp("data") / "tiny"
    return open_prepared(prepared_writer(directory, users=USERS, items=60))


@pytest.fixture(scope="module")
def checkpoint(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(data, SETTINGS, tmp_path_factory.mktemp("run"))


def flags(checkpoint: Path, data: PreparedData, out: Path, *more: str) -> list[str]:
    line = ["--run", str(checkpoint), "--out", str(out), "--data-dir", str(data.directory.parent)]
    return [*line, "--num-workers", "2", "--top-k", "5", *more]


def command(*args: Any) -> list[str]:
    return [sys.executable, "-m", "pnfrec_dist.recommend", *flags(*args)]


@pytest.fixture(scope="module")
def expected(checkpoint: Path, data: PreparedData) -> dict[str, list[str]]:
    """Lists made in this process, one user at a time."""
    model = open_trained(str(checkpoint), str(data.directory.parent))
    settings = ListSettings(top_k=5, gamma=0.0, keep_seen=False, batch_size=1)
    maker = ListMaker(model, data.raw_item_ids(), settings, Filters(), torch.device("cpu"))
    return by_user(pa.concat_tables([maker.make(read_users(part, data.num_items)) for part in user_parts(data)]))


def by_user(table: pa.Table) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for user, rank, item in zip(*(table[n].to_pylist() for n in ("user_id", "rank", "raw_item_id")), strict=True):
        found.setdefault(user, []).append(item)
        assert rank == len(found[user])
    return found


@pytest.mark.usefixtures("ray_here")
def test_all_users_have_their_lists(
    checkpoint: Path, data: PreparedData, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "recs"
    printed = called(recommend.main, tmp_path, *flags(checkpoint, data, out))
    assert f"for {USERS + 1:,} users; 1 of them, without a known like, have popular items" in printed
    table = pq.read_table(out)
    assert table.schema.equals(LIST_SCHEMA)
    assert by_user(table) == expected
    manifest = json.loads((out / "_manifest.json").read_text())
    assert manifest["users"] == USERS + 1 and manifest["rows"] == len(table)
    assert manifest["data"]["dataset"] == "tiny" and len(manifest["model"]["weights_sha256"]) == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recs"]


@pytest.mark.slow
def test_a_killed_command_leaves_the_old_lists_and_goes_on(
    checkpoint: Path, data: PreparedData, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "recs"
    slow = command(checkpoint, data, out, "--batch-size", "1", "--num-workers", "1")
    process = subprocess.Popen(slow, stdout=subprocess.DEVNULL, start_new_session=True, cwd=tmp_path)
    making = tmp_path / ".recs.making"
    wait_until(lambda: list(making.glob("part-*.json")), unless=lambda: process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    done = subprocess.run(slow, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming: 1 of 2 parts are already made" in done.stdout
    assert by_user(pq.read_table(out)) == expected


@pytest.mark.slow
def test_what_a_lost_worker_had_is_made_again(
    checkpoint: Path, data: PreparedData, expected: dict[str, list[str]], tmp_path: Path
) -> None:
    line = command(checkpoint, data, tmp_path / "recs", "--batch-size", "1")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=tmp_path)

    def killed() -> bool:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(child.cmdline()).startswith("ray::_make_part"):
                    child.kill()
                    return True
        return False

    wait_until(killed, unless=lambda: process.poll() is not None)
    assert process.communicate()[0] and process.returncode == 0
    assert by_user(pq.read_table(tmp_path / "recs")) == expected


def test_some_users_alone(checkpoint: Path, data: PreparedData, expected: dict[str, list[str]], tmp_path: Path) -> None:
    """With one worker, which is this process."""
    (tmp_path / "users.txt").write_text("u003\nu500\nwithout likes\n")
    out = tmp_path / "recs"
    more = ("--users", str(tmp_path / "users.txt"), "--num-workers", "1")
    called(recommend.main, tmp_path, *flags(checkpoint, data, out, *more))
    assert by_user(pq.read_table(out)) == {user: expected[user] for user in ("u003", "u500", "without likes")}
