"""--append: the same bytes as a build of all files, whatever the files and their order; only new files are read."""

import filecmp
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.commands import ENVIRONMENT
from helpers.preparation import prepared_in
from helpers.waiting import wait_until
from pyspark.sql import SparkSession

from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from spark_jobs import prepare
from spark_jobs.kept_rows import KeptRows
from spark_jobs.reading import Reader

pytestmark = pytest.mark.integration
Row = tuple[str, str, str, str]
"""user, item, event or rating, time"""
RULES: list[dict[str, Any]] = [
    {"threshold": 4},
    {"threshold": "median"},
    {"threshold": "labels", "positive_labels": ["5", "4.0"], "negative_labels": ["1", "2"]},
    {"positive": "rating >= 4", "negative": "rating <= 2"},
    {"positive": "rating >= 4", "undone": ["rating = 5"], "undone_by": ["rating = 1"]},
]


def same(one: Path, other: Path) -> bool:
    names = [sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()) for place in (one, other)]
    return names[0] == names[1] and not any(filecmp.cmpfiles(one, other, names[0], shallow=False)[1:])


def random_rows(rng: np.random.Generator, count: int) -> list[Row]:
    users, items = rng.integers(1, 25, count), rng.integers(1, 20, count)
    times = 1_600_000_000 + rng.integers(0, 60, count)
    columns = zip(users, items, rng.integers(1, 6, count), times, strict=True)
    return [(str(u), str(i), str(r), str(t)) for u, i, r, t in columns]


class Case:
    """Raw files of a random log, and the settings of its data set."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.rng = rng = np.random.default_rng(seed)
        self.format = str(rng.choice(["csv", "json", "parquet"]))
        self.files = [f"day-{number}.{self.format}" for number in rng.permutation(int(rng.integers(2, 5)))]
        feedback = RULES[int(rng.integers(len(RULES)))]
        conf: dict[str, Any] = {
            "source": {"files": f"*.{self.format}", "format": self.format},
            "feedback": feedback,
            "filter": {"min_users_per_item": 2, "min_items_per_user": 2},
            "split": {"min_positives": 0},
            "clean": {"max_quarantine_share": 0.5},
        }
        conf["clean"]["duplicates"] = str(rng.choice(["keep_all", "keep_first", "keep_last"]))
        conf["filter"]["scope"] = str(rng.choice(["train", "all"]))
        if rng.random() < 0.5:
            conf["titles"] = {"file": "titles.txt", "header": False, "fields": ["item", "title"], "separator": "|"}
        if rng.random() < 0.3 and self.format == "csv":
            conf["source"]["where"] = "user != '3'"
        (directory / "conf" / "dataset").mkdir(parents=True)
        (directory / "conf" / "dataset" / "logs.yaml").write_text(yaml.safe_dump(conf))
        self.has_titles = "titles" in conf
        self.write()

    def write(self) -> None:
        """Each file in a directory of its own, and all in `all`."""
        spelled = self.rng.random() < 0.5
        for number, name in enumerate(self.files):
            rows = random_rows(self.rng, 220)
            if self.format != "parquet":
                rows += [("x", "1", "much", "1600000001"), rows[0], rows[1]]
                if spelled and number == len(self.files) - 1:
                    rows = [(u, f"{i}.0", r, t) for u, i, r, t in rows]
                if self.rng.random() < 0.3:
                    rows.append(("5", "7", "5", "1600000033.5"))
                if self.rng.random() < 0.2:
                    rows.append(("anna", "7", "5", "1600000034"))
            for place in (self.directory / name.partition(".")[0], self.directory / "all"):
                place.mkdir(exist_ok=True)
                self.write_file(place / name, rows)
                if self.has_titles:
                    (place / "titles.txt").write_text("".join(f"{item}|Item {item}\n" for item in range(1, 15)))

    def write_file(self, file: Path, rows: list[Row]) -> None:
        names = ("user", "item", "rating", "timestamp")
        if self.format == "csv":
            file.write_text("\n".join(map(",".join, [names, *rows])) + "\n\n")
        elif self.format == "json":
            file.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
        else:
            columns = {name: [int(row[place]) for row in rows] for place, name in enumerate(names)}
            pq.write_table(pa.table(columns), file)


CASES = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(50)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", CASES)
def test_random_files_give_the_bytes_of_a_full_build(spark: SparkSession, tmp_path: Path, seed: int) -> None:
    case = Case(tmp_path, seed)
    first, *others = [name.partition(".")[0] for name in case.files]
    prepared_in(spark, tmp_path, "--dataset", "logs", "--raw", first, "--data-dir", "grown", "--keep-rows")
    for place in others:
        prepared_in(spark, tmp_path, "--dataset", "logs", "--append", place, "--data-dir", "grown")
    prepared_in(spark, tmp_path, "--dataset", "logs", "--raw", "all", "--data-dir", "full")
    assert same(tmp_path / "grown" / "logs", tmp_path / "full" / "logs")


@pytest.fixture(scope="module")
def first_day(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """conf/, day-1 and day-2 with a file each, and the data set of day-1 with kept rows."""
    tmp_path = tmp_path_factory.mktemp("logs")
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    conf = {"source": {"files": "*.csv"}, "feedback": {"threshold": 4}, "split": {"min_positives": 0}}
    (tmp_path / "conf" / "dataset" / "logs.yaml").write_text(yaml.safe_dump(conf))
    rng = np.random.default_rng(1)
    for day in ("day-1", "day-2"):
        for place in (day, "all"):
            (tmp_path / place).mkdir(exist_ok=True)
        rows = "\n".join(map(",".join, [("user", "item", "rating", "timestamp"), *random_rows(rng, 300)])) + "\n"
        for place in (day, "all"):
            (tmp_path / place / f"{day}.csv").write_text(rows)
    prepared_in(spark, tmp_path, "--dataset", "logs", "--raw", "day-1", "--keep-rows")
    return tmp_path


@pytest.fixture
def logs(first_day: Path, tmp_path: Path) -> Path:
    """A copy of first_day."""
    return shutil.copytree(first_day, tmp_path / "logs")


def state(directory: Path) -> dict[str, bytes]:
    return {p.as_posix(): p.read_bytes() for p in sorted((directory / "data/prepared/logs").rglob("*")) if p.is_file()}


def test_only_new_files_are_read_and_a_failed_build_changes_nothing(
    spark: SparkSession, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory may hold the old files, too. A file that was kept before an error is not read again."""
    before = state(logs)
    read = list[list[str]]()
    opened = Reader.opened

    def seen(self: Reader, **named: bool) -> object:
        read.append([file.name for file in self.files])
        return opened(self, **named)

    monkeypatch.setattr(Reader, "opened", seen)
    append = ("--dataset", "logs", "--append", "all")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "verify_content", lambda *_: (_ for _ in ()).throw(InputError("stopped")))
        with pytest.raises(InputError, match="stopped"):
            prepared_in(spark, logs, *append)
    assert state(logs) == before and read == [["day-2.csv"]]
    prepared_in(spark, logs, *append)
    assert read == [["day-2.csv"]], "its rows were kept"
    assert "has all files of all already" in prepared_in(spark, logs, *append)
    assert "has all files of day-2 already" in prepared_in(spark, logs, "--dataset", "logs", "--append", "day-2")
    prepared_in(spark, logs, "--dataset", "logs", "--raw", "all", "--data-dir", "full")
    assert same(logs / "data/prepared/logs", logs / "full/logs")
    kept = KeptRows(Location(logs / "data/prepared/logs")).read()
    assert kept is not None and [[file.path for file in batch.files] for batch in kept.batches] == [
        ["day-1.csv"],
        ["day-2.csv"],
    ]


def test_what_cannot_be_appended_is_refused(spark: SparkSession, logs: Path) -> None:
    before = state(logs)

    def refused(*args: str) -> str:
        with pytest.raises(InputError) as caught:
            prepared_in(spark, logs, "--dataset", "logs", *args)
        assert state(logs) == before
        return str(caught.value)

    (logs / "changed").mkdir()
    text = (logs / "day-1" / "day-1.csv").read_text()
    (logs / "changed" / "day-1.csv").write_text(text.replace("16000000", "16000001", 1))
    assert "day-1.csv has changed since it was read" in refused("--append", "changed")
    (logs / "other").mkdir()
    (logs / "other" / "new.csv").write_text("user,item,rating,timestamp,more\n1,2,3,1600000000,x\n")
    assert "has other columns than the kept files" in refused("--append", "other")
    assert "kept with other settings of feedback" in refused("--append", "day-2", "--feedback.threshold", "3")
    assert "raw directory 'none' does not exist" in refused("--append", "none")
    told = refused("--append", "day-2", "--data-dir", "elsewhere")
    assert "there are no kept rows at" in told and "--keep-rows" in told
    told = refused("--append", "day-2", "--source.timestamp", "none", "--source.order", "rows")
    assert "--append needs times" in told
    rows = next((logs / "data/prepared/.logs.kept/rows/batch=000000").glob("*.parquet"))
    rows.write_bytes(rows.read_bytes()[:-1])
    assert f"{rows.name} is missing or damaged; build the data set from all files again" in refused("--append", "day-2")


@pytest.mark.slow
def test_a_file_with_too_many_unreadable_rows_can_be_corrected(spark: SparkSession, logs: Path) -> None:
    """Its rows are not kept before all files can be read."""
    before, file = state(logs), logs / "day-2" / "day-2.csv"
    good = file.read_text()
    file.write_text(good + "broken\n" * 200)
    with pytest.raises(InputError, match="200 of 800 rows"):
        prepared_in(spark, logs, "--dataset", "logs", "--append", "day-2")
    assert state(logs) == before
    file.write_text(good)
    prepared_in(spark, logs, "--dataset", "logs", "--append", "day-2")
    prepared_in(spark, logs, "--dataset", "logs", "--raw", "all", "--data-dir", "full")
    assert same(logs / "data/prepared/logs", logs / "full/logs")


def test_a_build_without_keep_rows_deletes_kept_rows(spark: SparkSession, logs: Path) -> None:
    """They would not be those of the data set."""
    kept = logs / "data/prepared/.logs.kept"
    assert "up to date" in prepared_in(spark, logs, "--dataset", "logs", "--raw", "day-1", "--keep-rows")
    assert kept.is_dir()
    prepared_in(spark, logs, "--dataset", "logs", "--raw", "all")
    assert not kept.exists() and not (logs / "spark-warehouse").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_any_moment_the_old_data_set_stays(logs: Path) -> None:
    """Then the same command gives the bytes of a full build."""
    before, kept = state(logs), logs / "data/prepared/.logs.kept"
    line = [sys.executable, "-m", "spark_jobs", "--dataset", "logs", "--append", "day-2"]
    moments = {
        "start": lambda: True,
        "rows": lambda: (kept / "rows/batch=000001").exists(),
        "kept": lambda: '"day-2.csv"' in (kept / "kept.json").read_text(),
        "building": lambda: any((logs / "data/prepared").glob(".logs.building-*/train/*")),
    }
    for name, reached in moments.items():
        with subprocess.Popen(line, cwd=logs, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as job:
            wait_until(reached, lambda job=job: job.poll() is not None)
            job.send_signal(signal.SIGKILL)
        assert state(logs) == before, name
    for command in ([*line], [*line[:5], "--raw", "all", "--data-dir", "full"]):
        done = subprocess.run(command, cwd=logs, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert same(logs / "data/prepared/logs", logs / "full/logs")
    assert sorted(p.name for p in (logs / "data/prepared").iterdir()) == [".logs.kept", "logs"]
