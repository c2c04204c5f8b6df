"""One build: the stages in their order, and what they count. The steps are in the modules it names."""

import time
from collections.abc import Sequence

from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from pnfrec_dist.config.dataset_settings import EPOCH_UNITS, DatasetSettings
from pnfrec_dist.data.schema import (
    REPORT_NAME,
    SCHEMA_VERSION,
    SCHEMAS,
    USERS,
    FileEntry,
    Manifest,
    settings_hash,
    write_manifest,
)
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.text import file_size
from spark_jobs import transforms
from spark_jobs.clean import (
    HEADER_AGAIN,
    INTERACTION,
    accepted,
    date_of,
    rejected,
    timestamp_range,
    timestamp_unit,
    typed_rows,
    unreadable,
)
from spark_jobs.figures import Distributions, draw
from spark_jobs.quantile import BUCKETS, Bucket, bucket_of, histograms
from spark_jobs.report import LENGTHS, length_quantiles, render_report
from spark_jobs.sequences import user_sequences
from spark_jobs.session import at_once
from spark_jobs.sources import RawFile, read_rows
from spark_jobs.titles import read_titles, write_titles
from spark_jobs.writer import shard_count, write_items, write_no_quarantine, write_quarantine, write_users

EXAMPLES = 5
BINS = 60
USERS_AT_ONCE = 2_000
"""Of a row group of users/, which is a worker's unit when lists are made."""


class Build:
    """One build: the stages in their order, and what they count."""

    def __init__(
        self,
        spark: SparkSession,
        settings: DatasetSettings,
        name: str,
        files: Sequence[RawFile],
        partitions: int,
        started: float,
    ) -> None:
        self.spark, self.settings, self.name = spark, settings, name
        self.files = sorted(files, key=lambda file: file.name)
        self.partitions, self.started = partitions, started
        self.counts: dict[str, dict[str, int]] = {}
        self.written: list[FileEntry] = []
        self.examples: list[tuple[str, str, str]] = []
        self.distributions = Distributions()

    def run(self, building: Location, sources: list[FileEntry]) -> Manifest:
        """Writes every file of the data set into `building`, but _SUCCESS last; returns the manifest."""
        interactions = self.read(building)
        filtered, split = self.filter_and_split(interactions)
        threshold = self.threshold(filtered, split)
        labelled = transforms.label_feedback(filtered, threshold)
        self.write_sequences(labelled, split, threshold, building)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            dataset=self.name,
            settings=self.settings.prepared(),
            settings_hash=settings_hash(self.settings.prepared()),
            sources=sources,
            counts=self.counts,
            threshold=threshold,
            split_timestamp=split,
            timestamp_unit=self.unit,
            files=sorted(self.written, key=lambda entry: entry.path),
        )
        report = building / REPORT_NAME
        report.write_bytes(render_report(manifest, self.settings.expected, self.figures, self.examples).encode())
        manifest.files.append(FileEntry(REPORT_NAME, report.size(), report.sha256()))
        write_manifest(building, manifest)
        return manifest

    def done(self, stage: str, **numbers: int) -> None:
        """Keeps a stage's counts and prints its line."""
        self.counts[stage] = numbers
        self.say(stage, "  ".join(f"{v:,} {k.replace('_', ' ')}" for k, v in numbers.items()))

    def say(self, stage: str, text: str) -> None:
        """A progress line."""
        print(f"[{time.monotonic() - self.started:5.0f} s] {stage.replace('_', ' '):<14} {text}", flush=True)

    def read(self, building: Location) -> DataFrame:
        """Reads and cleans: the good rows without equal ones, a user's rows in one partition."""
        source = self.settings.source
        self.say("reading", f"{len(self.files):,} files, {file_size(sum(f.bytes for f in self.files))}")
        if source.time_format not in (*EPOCH_UNITS, "iso"):
            _require_pattern(self.spark, source.time_format)
        rows = read_rows(self.spark, self.files, source)
        self.unit = timestamp_unit(rows, source)
        typed = typed_rows(rows, self.settings)
        self.quarantined = Observation()
        seen = typed.select(*INTERACTION, "position", "reason").observe(
            self.quarantined, F.count("reason").alias("rows")
        )
        interactions = accepted(seen, self.partitions).persist(StorageLevel.DISK_ONLY)
        place = bucket_of("timestamp", *timestamp_range(self.settings.clean, self.unit), BUCKETS)
        ends = (F.min("timestamp").alias("low"), F.max("timestamp").alias("high"))
        counted = interactions.groupBy(place).agg(*ends, F.count("*").alias("count"), F.sum("copies").alias("copies"))
        rows = sorted(counted.collect(), key=lambda row: row["low"])
        self.times = [Bucket(row["low"], row["high"], row["count"]) for row in rows]
        kept, good = (sum(row[name] for row in rows) for name in ("count", "copies"))
        self.quarantine(typed, good, building)
        self.done("deduplicated", rows=good - kept)
        self.interactions, self.good = interactions, good
        return interactions

    def quarantine(self, typed: DataFrame, good: int, building: Location) -> None:
        """Counts and writes the rows that could not be read; parses again only when there are any."""
        source = self.settings.source
        own_headers = len(self.files) if source.format == "csv" and source.header else 0
        reasons: dict[str, int] = {}
        bad_rows = unreadable(typed).persist(StorageLevel.DISK_ONLY)
        if self.quarantined.get["rows"] != own_headers:
            reasons = {row["reason"]: row["count"] for row in bad_rows.groupBy("reason").count().collect()}
            reasons[HEADER_AGAIN] = reasons.get(HEADER_AGAIN, 0) - own_headers
            assert reasons[HEADER_AGAIN] >= 0, reasons
        reasons = {reason: count for reason, count in sorted(reasons.items()) if count}
        bad = sum(reasons.values())
        self.done("read", rows=good + bad)
        self.done("quarantined", rows=bad, **reasons)
        if bad:
            quarantine = rejected(bad_rows, self.files)
            first = quarantine.orderBy("position").limit(EXAMPLES).collect()
            self.examples = [(row["source_file"], row["row"], row["reason"]) for row in first]
            self.require_readable(good + bad, bad)
            self.written += write_quarantine(quarantine, building, bad)
            bad_rows.unpersist()
        else:
            self.written.append(write_no_quarantine(building))
        if good == 0:
            others = f" (and {len(self.files) - 1:,} files more)" if len(self.files) > 1 else ""
            way_out = "check RAW (--raw) and the YAML's source"
            raise InputError(f"no row of {self.files[0].location}{others} is an interaction; {way_out}")

    def require_readable(self, read: int, bad: int) -> None:
        """Raises InputError with the first unreadable rows when there are more than max_quarantine_share of them."""
        share = self.settings.clean.max_quarantine_share
        if bad / read <= share:
            return
        reasons = sorted(self.counts["quarantined"].items(), key=lambda pair: -pair[1])[1:4]
        common = ", ".join(f"{count:,} because {reason}" for reason, count in reasons)
        file, row, reason = self.examples[0]
        first = f"first in {file}: {row[:200]!r} ({reason})"
        others = "; ".join(f"{row[:80]!r} ({reason})" for _, row, reason in self.examples[1:3])
        way_out = f"mend them, or set them aside with --clean.max-quarantine-share {_round_up(bad / read)}"
        if bad == read:
            way_out = "no row can be read: check the YAML's source (separator, header, columns, time_format)"
        raise InputError(
            f"{bad:,} of {read:,} rows ({bad / read:.2%}, allowed are {share:.2%}) could not be read: {common}; "
            f"{first}{'; then ' + others if others else ''}; {way_out}"
        )

    def filter_and_split(self, interactions: DataFrame) -> tuple[DataFrame, int]:
        """(interactions that pass the filter, T)."""
        settings = self.settings
        quantile = settings.split.quantile
        if settings.filter.scope == "all":
            support = transforms.Support(interactions, settings.filter)
            passed = support.filter(interactions)
            transforms.require_rows(int(not passed.isEmpty()), "the data set after the filter", "lower --filter.*")
            split = transforms.split_timestamp(passed, quantile)
        else:
            split = transforms.split_timestamp(interactions, quantile, self.times)
            self.require_train(int(self.times[0].low < split), split)
            support = transforms.Support(transforms.before(interactions, split), settings.filter)
        self.say("split", f"T = {split} ({date_of(split, self.unit)} UTC)")
        if settings.clean.duplicates != "keep_all":
            collapsed = transforms.collapse_pairs(interactions, settings.clean.duplicates, split)
            self.interactions = collapsed.persist(StorageLevel.DISK_ONLY)
            kept = self.interactions.count()
            self.counts["deduplicated"] = {"rows": self.good - kept}
            self.say("pairs", f"{self.good - kept:,} rows deduplicated in all")
            interactions.unpersist()
        self.done("interactions", rows=self.good - self.counts["deduplicated"]["rows"])
        self.numbers = transforms.settled(transforms.number_items(support.items))
        numbered = transforms.by_number(self.interactions.drop("copies"), self.numbers, self.partitions)
        self.filtered = support.of_users(numbered).persist(StorageLevel.DISK_ONLY)
        self.filtered_users = support.users.count()
        return self.filtered, split

    def threshold(self, filtered: DataFrame, split: int) -> float:
        """From which relevance on an interaction is positive."""
        transforms.require_rows(self.filtered_users, "the data set after the filter", "lower --filter.*")
        train = transforms.before(filtered, split)
        if self.settings.feedback.threshold in ("median", "quantile"):
            self.require_train(int(not train.isEmpty()), split)
        return transforms.resolve_threshold(train, self.settings.feedback)

    def require_train(self, rows: int, split: int) -> None:
        """Raises InputError when nothing lies before T."""
        transforms.require_rows(rows, "train", f"T = {split} leaves nothing there; change --split.quantile")

    def write_sequences(self, labelled: DataFrame, split: int, threshold: float, building: Location) -> None:
        """Catalog, train shards, validation and test shards."""
        settings = self.settings
        least = settings.split.min_positives
        counted = transforms.settled(transforms.count_items(labelled, split))
        self.interactions.unpersist()
        items = transforms.settled(transforms.catalog(counted, self.numbers))
        self.num_items = items.count()
        self.require_train(self.num_items, split)
        encoded = transforms.mark_newest(transforms.encode(labelled, items, self.partitions), settings.clean.duplicates)
        sequences = user_sequences(encoded, settings.max_history, split).persist(StorageLevel.DISK_ONLY)
        users = transforms.settled(sequences.drop("train", "whole", "holdout"))
        self.count_splits(counted, users)
        holdout_users = users.where(transforms.is_holdout_user())
        assigned = transforms.settled(transforms.assign_holdout(holdout_users, settings.split))
        tests, everyone = assigned.agg(F.count_if("is_test"), F.count("*")).collect()[0]
        self.done("assigned", test_users=tests, validation_users=everyone - tests)

        train_users = users.where(transforms.is_train_user(least))
        self.count_lengths(train_users, items)
        entries = self.entries(train_users)
        at_once(
            self.spark,
            lambda: self.write_train(sequences.where(transforms.is_train_user(least)), entries, building),
            lambda: self.write_holdout(sequences, assigned, building),
            lambda: self.write_everyone(sequences, users, building),
            lambda: self.write_catalog(items, building),
            lambda: self.draw_values(counted, threshold, split),
        )
        sequences.unpersist()
        self.filtered.unpersist()

    def write_train(self, sequences: DataFrame, entries: int, building: Location) -> None:
        """Train shards. entries: ids in all their lists."""
        settings = self.settings
        users = self.counts["train_users"]["users"]
        shards = shard_count(entries, users, self.num_items, settings.shard_mb)
        lists = sequences.select(F.col("raw_user_id").alias("user_id"), "train.*")
        self.written += write_users(lists, building / "train", SCHEMAS["train"], shards)
        self.say("written", f"train, {shards:,} shards")

    def write_everyone(self, sequences: DataFrame, users: DataFrame, building: Location) -> None:
        """The whole history of every user."""
        limit = F.lit(self.settings.max_history)
        positives = F.col("train_positives") + F.col("holdout_positives")
        rows = F.col("train_rows") + F.col("holdout_rows")
        entries = sum((F.least(c, limit) for c in (rows, positives, rows - positives)), rows)
        total, entries = users.agg(F.count("*"), F.sum(entries)).collect()[0]
        self.done("users", users=total)
        shards = shard_count(entries, total, self.num_items, self.settings.shard_mb)
        lists = sequences.select(F.col("raw_user_id").alias("user_id"), "whole.*")
        self.written += write_users(lists, building / USERS, SCHEMAS[USERS], shards, USERS_AT_ONCE)

    def write_catalog(self, items: DataFrame, building: Location) -> None:
        """items.parquet, and titles.parquet where the source has titles."""
        self.written.append(write_items(items, building))
        titles = self.settings.titles
        if titles.file:
            found = read_titles(self.files[0].directory / titles.file, titles)
            if found is None:
                self.say("titles", f"no {titles.file} beside {self.files[0].name}: lists will show raw ids alone")
            else:
                entry = write_titles(found, building)
                self.written.append(entry)
                self.say("titles", f"{entry.rows:,} of {self.num_items:,} items have one")

    def draw_values(self, counted: DataFrame, threshold: float, split: int) -> None:
        """Draws the report's figures, for which it counts relevance and time."""
        ends = [F.min("low"), F.max("high"), F.min("first"), F.max("last")]
        low, high, first, last = counted.agg(*ends).collect()[0]
        drawn = histograms(self.filtered, {"relevance": (low, high), "timestamp": (first, last)}, BINS)
        self.distributions.relevance.extend(drawn["relevance"])
        self.distributions.activity.extend(drawn["timestamp"])
        self.figures = draw(self.distributions, threshold, split, self.unit)

    def count_splits(self, counted: DataFrame, users: DataFrame) -> None:
        """Sizes after the filter, of train, and of the holdout without users or items that train lacks."""
        rows, positives, num_items = counted.agg(F.sum("rows"), F.sum("positives"), F.count("*")).collect()[0]
        self.done("filtered", rows=rows, users=self.filtered_users, items=num_items, positives=positives)
        in_train, in_holdout = transforms.is_in_train(), transforms.is_holdout_user()
        train_rows, train_users, holdout_rows, holdout_users = users.agg(
            F.sum("train_rows"),
            F.count_if(in_train),
            F.sum(F.when(in_holdout, F.col("holdout_rows")).otherwise(0)),
            F.count_if(in_holdout),
        ).collect()[0]
        self.done("train", rows=train_rows, users=train_users, items=self.num_items)
        self.done("holdout", rows=holdout_rows, users=holdout_users)
        transforms.require_rows(
            holdout_rows,
            "the holdout (without users and items that train lacks)",
            "lower --split.quantile, or bring users with a longer history",
        )

    def count_lengths(self, train_users: DataFrame, items: DataFrame) -> None:
        """Lengths of whole histories in train, and the popularity of items."""
        positive, every = F.col("train_positives"), F.col("train_rows")
        kinds = zip(LENGTHS, (every, positive, every - positive), strict=True)
        pairs = F.explode(F.array(*[F.struct(F.lit(k).alias("kind"), v.alias("length")) for k, v in kinds]))
        counted = train_users.select(pairs.alias("pair")).groupBy("pair.kind", "pair.length").count().collect()
        lengths: dict[str, dict[int, int]] = {kind: {} for kind in LENGTHS}
        for row in counted:
            lengths[row["kind"]][row["length"]] = row["count"]
        total = sum(lengths["all"].values())
        self.done("train_users", users=total)
        least = self.settings.split.min_positives
        transforms.require_rows(total, f"train (users with {least} positives)", "lower --split.min-positives")
        for kind in LENGTHS:
            self.counts[f"length_{kind}"] = length_quantiles(lengths[kind])
        popular = items.groupBy((F.col("num_positive") + F.col("num_negative")).alias("actions")).count().collect()
        self.distributions.lengths.update(lengths)
        self.distributions.popularity.update({row["actions"]: row["count"] for row in popular})

    def entries(self, train_users: DataFrame) -> int:
        """Ids in all lists of the train shards."""
        limit = F.lit(self.settings.max_history)
        negatives = F.col("train_rows") - F.col("train_positives")
        columns = (F.col("train_rows"), F.col("train_positives"), negatives)
        return train_users.agg(F.sum(sum((F.least(c, limit) for c in columns), F.lit(0)))).collect()[0][0]

    def write_holdout(self, sequences: DataFrame, assigned: DataFrame, building: Location) -> None:
        """Validation and test shards."""
        settings = self.settings
        least = settings.split.min_positives
        enough = transforms.is_holdout_user() & transforms.is_train_user(least) & (F.col("holdout_positives") >= least)
        chosen = sequences.where(enough).join(assigned, on="raw_user_id", how="inner")
        chosen = chosen.select(F.col("raw_user_id").alias("user_id"), "is_test", "holdout.*")
        chosen.persist(StorageLevel.MEMORY_AND_DISK)
        way_out = "lower --split.min-positives or --split.quantile, or bring more data"
        for part, wanted in (
            ("validation", ~F.col("is_test") & F.col("target_is_positive")),
            ("test", F.col("is_test")),
        ):
            part_rows = chosen.where(wanted)
            lists = ("items", "positive_items", "negative_items", "seen_items")
            total, positive, entries = part_rows.agg(
                F.count("*"),
                F.count_if("target_is_positive"),
                F.sum(sum((F.size(name) for name in lists), F.lit(0))),
            ).collect()[0]
            self.done(part, users=total, positive_targets=positive, negative_targets=total - positive)
            transforms.require_rows(total, f"{part} (users with enough positives in the holdout)", way_out)
            shards = shard_count(entries, total, self.num_items, settings.shard_mb)
            self.written += write_users(part_rows, building / part, SCHEMAS[part], shards)
        chosen.unpersist()


def _require_pattern(spark: SparkSession, pattern: str) -> None:
    """Raises InputError for a time pattern that Spark does not take."""
    try:
        spark.range(1).select(F.try_to_timestamp(F.lit("2020-01-01"), F.lit(pattern))).collect()
    except PySparkException as error:
        example = "an example: yyyy-MM-dd HH:mm:ss"
        raise InputError(f"source.time_format {pattern!r} is no pattern that Spark reads; {example}") from error


def _round_up(share: float) -> float:
    """The next of 0.001, 0.01, 0.1, ... at or above a share, below 1."""
    return next((s for s in (0.001, 0.01, 0.1, 0.5, 0.9) if s >= share), 0.99)
