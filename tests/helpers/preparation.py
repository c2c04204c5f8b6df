"""Shared by tests of the preparation: small logs, a build, and the command, in a given Spark session."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from helpers.commands import called
from pnfrec_dist.config.dataset_settings import DatasetSettings, FeedbackSettings, FilterSettings, SplitSettings
from pnfrec_dist.config.source_settings import SourceSettings, TitlesSettings
from pnfrec_dist.data.schema import Manifest
from pnfrec_dist.files.locations import Location
from spark_jobs import prepare
from spark_jobs.build import Build
from spark_jobs.clean import typed_rows
from spark_jobs.raw_files import describe_sources, find_raw
from spark_jobs.reading import Reader
from spark_jobs.stage_log import StageLog
from spark_jobs.times import timestamp_unit
from spark_jobs.verify import verify

START = 1_600_000_000
HEADER = "user,item,rating,timestamp"
SMALL = DatasetSettings(
    filter=FilterSettings(2, 2), feedback=FeedbackSettings(threshold=4), split=SplitSettings(min_positives=1)
)


@dataclasses.dataclass(frozen=True)
class Place:
    raw: str
    source: SourceSettings
    titles: TitlesSettings = dataclasses.field(default_factory=TitlesSettings)


def build(
    spark: SparkSession,
    raw: Path,
    out: Path,
    wanted: DatasetSettings = SMALL,
    *,
    partitions: int = 2,
    reverse: bool = False,
) -> Manifest:
    """Builds a data set in this session and checks all of it. reverse: gives the files in reverse order."""
    files = find_raw("tiny", Place(str(raw), wanted.source, wanted.titles))
    spark.conf.set("spark.sql.shuffle.partitions", str(partitions))
    out.mkdir(parents=True)
    given = files[::-1] if reverse else files
    reader = Reader(spark, wanted, given, StageLog(time.monotonic()))
    Build("tiny", reader, partitions).run(Location(out), describe_sources(files))
    return verify(Location(out))


def cleaned(rows: DataFrame, settings: DatasetSettings) -> DataFrame:
    """typed_rows() in the unit of the source."""
    return typed_rows(rows, settings, timestamp_unit(rows, settings.source))


def prepared_in(spark: SparkSession, directory: Path, *args: str) -> str:
    """Runs `python -m spark_jobs` in `directory` on this process's session, which keeps running; returns its output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "stop_session", lambda _: None)
        return called(prepare.main, directory, *args)


def random_log(rng: np.random.Generator, users: int = 50, items: int = 40, rows: int = 1000) -> list[str]:
    """Lines with many equal times. A quarter of the rows have one time, which is T."""
    times = np.where(rng.random(rows) < 0.25, 90, rng.integers(0, 90, rows) + 12 * (rng.random(rows) < 0.08))
    columns = (rng.integers(0, users, rows), rng.integers(0, items, rows), rng.integers(1, 6, rows), START + times)
    return [f"u{u},{i},{r},{t}" for u, i, r, t in zip(*columns, strict=True)]


def write_log(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, *lines]) + "\n")


def train_bytes(manifest: Manifest) -> dict[str, str]:
    return {e.path: e.sha256 for e in manifest.files if e.path.startswith(("train/", "items."))}


def events(rng: np.random.Generator) -> list[tuple[int, int, float, int]]:
    """(user, item, rating 1..5, epoch seconds). No user rates an item twice; many rows of a user share a day."""
    pairs = [(int(u), int(i)) for u in range(60) for i in rng.choice(40, 25, replace=False)]
    times = START + 86_400 * rng.integers(0, 60, len(pairs)) + rng.integers(0, 3, len(pairs))
    return [(u, i, float(r), int(t)) for (u, i), r, t in zip(pairs, rng.integers(1, 6, len(pairs)), times, strict=True)]
