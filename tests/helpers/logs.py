"""A raw log in a directory of its own, with the settings of conf/dataset/mylogs.yaml, and builds of it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyspark.sql import Row, SparkSession

from helpers.preparation import Place, cleaned, prepared_in
from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.config.mappings import override
from pnfrec_dist.data.schema import Manifest, read_manifest
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from spark_jobs.raw_files import find_raw
from spark_jobs.reading import Reader
from spark_jobs.sources import check_files, read_rows
from spark_jobs.stage_log import StageLog
from spark_jobs.transforms import split_timestamp

ROWS = [
    (f"u{t % 30}", f"i{(t * 7 + t // 30) % 20}", 1 + (t * t // 7 + t) % 5, 1_600_000_000 + 3600 * t) for t in range(600)
]
"""(user, item, relevance, time)"""
USERS, ITEMS, RATINGS, TIMES = (list(column) for column in zip(*ROWS, strict=True))
HEADER = "user,item,rating,timestamp"
SPLIT = int(np.quantile(TIMES, 0.9, method="nearest"))


@dataclass(frozen=True)
class Read:
    """What a build reads, before the filter."""

    rows: list[Row]
    """the interactions, in the order of the source"""
    counts: dict[str, dict[str, int]]
    split: int
    """T"""
    unit: str
    printed: str
    warnings: str

    @property
    def likes(self) -> int:
        """Rows of relevance 1, for labels and conditions."""
        return sum(row["relevance"] == 1 for row in self.rows)


@dataclass
class Log:
    """A directory with raw files and conf/dataset/mylogs.yaml; prepare() builds it."""

    spark: SparkSession
    directory: Path
    capsys: pytest.CaptureFixture[str]
    printed: str = ""
    warned: str = ""

    @property
    def raw(self) -> Path:
        return self.directory / "raw"

    def write(self, rows: list[tuple[Any, ...]], name: str = "log.csv", header: str = HEADER) -> None:
        (self.raw / name).write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")

    def write_parquet(self, **columns: Any) -> None:
        own = {"user": USERS, "item": ITEMS, "rating": RATINGS, "timestamp": TIMES}
        pq.write_table(pa.table(own | columns), self.raw / "log.parquet")

    def prepare(self, *flags: str, **sections: dict[str, Any]) -> Manifest:
        conf = {"split": {"min_positives": 0}, "feedback": {"threshold": 4}, **sections}
        (self.directory / "conf/dataset/mylogs.yaml").write_text(yaml.safe_dump(conf))
        self.printed = prepared_in(self.spark, self.directory, "--dataset", "mylogs", "--raw", "raw", *flags)
        self.warned = self.capsys.readouterr().err
        return read_manifest(Location(self.directory / "data/prepared/mylogs"))

    def cleaned(self, **sections: dict[str, Any]) -> list[Row]:
        """The good rows, without the rest of the build."""
        settings = override(DatasetSettings(), sections, "conf")
        files = find_raw("mylogs", Place(str(self.raw), settings.source))
        check_files(files, settings.source)
        rows = cleaned(read_rows(self.spark, files, settings.source), settings)
        return rows.where("reason IS NULL").orderBy("position").collect()

    def read(self, **sections: dict[str, Any]) -> Read:
        """The first part of prepare(), up to T."""
        conf = {"split": {"min_positives": 0}, "feedback": {"threshold": 4}, **sections}
        settings = override(DatasetSettings(), conf, "conf")
        files = find_raw("mylogs", Place(str(self.raw), settings.source))
        check_files(files, settings.reading())
        log = StageLog(time.monotonic())
        reader = Reader(self.spark, settings, files, log)
        found = reader.read(2, Location(self.directory / "read"))
        split = split_timestamp(found.interactions, settings.split.quantile, found.times)
        rows = found.interactions.orderBy("position").collect()
        found.interactions.unpersist()
        return Read(rows, log.counts, split, found.unit, self.capsys.readouterr().out, "\n".join(reader.warnings))

    def refused(self, *flags: str, **sections: dict[str, Any]) -> str:
        with pytest.raises(InputError) as caught:
            self.prepare(*flags, **sections)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def items(self) -> list[str]:
        table = pq.read_table(self.directory / "data/prepared/mylogs/items.parquet")
        return table["raw_item_id"].to_pylist()

    def titles(self) -> dict[str, str]:
        """Raw item id -> title."""
        table = pq.read_table(self.directory / "data/prepared/mylogs/titles.parquet")
        raw = self.items()
        return {raw[row["item_id"] - 1]: row["title"] for row in table.to_pylist()}


PARQUET = {"format": "parquet", "files": "*.parquet"}


def positives(manifest: Manifest) -> int:
    return manifest.counts["filtered"]["positives"]
