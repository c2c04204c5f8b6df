"""One build: runs the stages in order and collects their counts. The steps are in the modules imported here."""

from typing import Any

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F

from pnfrec_dist.data.schema import (
    REPORT_NAME,
    SCHEMA_VERSION,
    SCHEMAS,
    USERS,
    FileEntry,
    Manifest,
    few_liked_targets,
    settings_hash,
    write_manifest,
)
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.text import counted
from spark_jobs import repeats, transforms
from spark_jobs.quantile import histograms
from spark_jobs.reading import Readable, Reader
from spark_jobs.report import LENGTHS, length_quantiles, render_report
from spark_jobs.report_figures import Distributions, draw
from spark_jobs.sequences import user_sequences
from spark_jobs.session import at_once
from spark_jobs.times import date_of
from spark_jobs.titles import read_titles, write_titles
from spark_jobs.writer import shard_count, write_items, write_users

BINS = 60
LIST_LENGTH = 10
"""of the headline metrics"""
USERS_AT_ONCE = 2_000
"""Users in a row group of users/. A worker makes lists for one row group at a time."""


class Build:
    """One build: runs the stages in order and collects their counts."""

    def __init__(self, name: str, reader: Reader, partitions: int, conf: dict[str, Any] | None = None) -> None:
        """conf: see Manifest."""
        self.name, self.reader, self.partitions, self.conf = name, reader, partitions, conf
        self.spark, self.settings, self.log, self.warnings = (
            reader.spark,
            reader.settings,
            reader.log,
            reader.warnings,
        )
        self.holds_out = self.settings.split.holdout != "none"
        self.written: list[FileEntry] = []
        self.distributions = Distributions()

    def run(self, building: Location, sources: list[FileEntry]) -> Manifest:
        """Writes every file of the data set into `building`, _SUCCESS last; returns the manifest."""
        read = self.reader.read(self.partitions, building)
        self.unit, self.interactions = read.unit, read.interactions
        self.written += read.quarantine
        filtered, split = self.filter_and_split(read)
        threshold = self.threshold(filtered, split)
        labelled = transforms.label_feedback(filtered, threshold)
        self.write_sequences(labelled, split, threshold, building)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            dataset=self.name,
            settings=self.settings.prepared(),
            settings_hash=settings_hash(self.settings.prepared()),
            conf=self.conf,
            sources=sources,
            counts=self.log.counts,
            threshold=threshold,
            split_timestamp=split,
            timestamp_unit=self.unit,
            files=sorted(self.written, key=lambda entry: entry.path),
        )
        report = building / REPORT_NAME
        report.write_bytes(render_report(manifest, self.settings.expected, self.figures, read.examples).encode())
        manifest.files.append(FileEntry(REPORT_NAME, report.size(), report.sha256()))
        write_manifest(building, manifest)
        return manifest

    def filter_and_split(self, read: Readable) -> tuple[DataFrame, int]:
        """(interactions that pass the filter, T)."""
        settings, interactions = self.settings, read.interactions
        quantile = settings.split.quantile
        after_all = int(read.times[-1].high) + 1  # T without a holdout
        if settings.filter.scope == "all":
            support = transforms.Support(repeats.standing(interactions), settings.filter)
            passed = support.filter(interactions)
            transforms.require_any(int(not passed.isEmpty()), settings.filter)
            split = transforms.split_timestamp(passed, quantile) if self.holds_out else after_all
        else:
            split = transforms.split_timestamp(interactions, quantile, read.times) if self.holds_out else after_all
            self.require_times(read, split)
            support = transforms.Support(
                transforms.before(repeats.not_undone(interactions, split), split), settings.filter
            )
        told = f"T = {split} ({date_of(split, self.unit)})" if self.holds_out else "no holdout: all interactions train"
        self.log.say("split", told)
        rows = read.rows - self.log.counts["deduplicated"]["rows"]
        if settings.feedback.undone or settings.clean.duplicates != "keep_all":
            rows = self.drop_replaced(rows, split)
        self.log.done("interactions", rows=rows)
        self.numbers = transforms.settled(transforms.number_items(support.items))
        numbered = transforms.by_number(self.interactions.drop("copies"), self.numbers, self.partitions)
        self.filtered = support.of_users(numbered).persist(StorageLevel.DISK_ONLY)
        self.filtered_users = support.users.count()
        return self.filtered, split

    def drop_replaced(self, rows: int, split: int) -> int:
        """Drops what is taken back, and repeated pairs; returns how many of the `rows` are left."""
        settings, interactions = self.settings, self.interactions
        observed = Observation()
        left = repeats.not_undone(interactions, split).observe(observed, F.count("*").alias("rows"))
        collapsed = repeats.collapse_pairs(left, settings.clean.duplicates, split)
        self.interactions = collapsed.persist(StorageLevel.DISK_ONLY)
        kept, standing = self.interactions.count(), observed.get["rows"]
        if not standing:
            raise InputError(f"all {rows:,} likes and dislikes are taken back; check feedback.undone_by")
        if settings.feedback.undone:
            self.log.done("undone", rows=rows - standing)
        deduplicated = self.log.counts["deduplicated"]["rows"] + standing - kept
        self.log.counts["deduplicated"] = {"rows": deduplicated}
        self.log.say("pairs", f"{deduplicated:,} rows deduplicated in total")
        interactions.unpersist()
        return kept

    def threshold(self, filtered: DataFrame, split: int) -> float:
        """The smallest relevance of a positive interaction."""
        transforms.require_any(self.filtered_users, self.settings.filter)
        train = transforms.before(filtered, split)
        if self.settings.feedback.threshold in ("median", "quantile"):
            self.require_train(int(not train.isEmpty()), split)
        return transforms.resolve_threshold(train, self.settings.feedback)

    def require_times(self, read: Readable, split: int) -> None:
        """Raises InputError if no row is before T, and says why."""
        times = read.times
        if times[0].low < split:
            return
        name, first = self.settings.source.timestamp, date_of(split, self.unit)
        if times[0].low == times[-1].high:
            raise InputError(
                f"every interaction has the {name} {first}, so no row can be before T; "
                "check source.timestamp and source.time_format"
            )
        share = read.interactions.where(F.col("timestamp") == split).count() / sum(bucket.count for bucket in times)
        raise InputError(
            f"no row is before T = {split} ({first}): {share:.1%} of the interactions have this {name}, the earliest; "
            "raise --split.quantile above this share"
        )

    def require_train(self, rows: int, split: int) -> None:
        """Raises InputError if there is no row before T."""
        transforms.require_rows(rows, "train", f"no row is before T = {split}; change --split.quantile")

    def write_sequences(self, labelled: DataFrame, split: int, threshold: float, building: Location) -> None:
        """Writes the catalog and the shards of train, validation, test and users/."""
        settings = self.settings
        least = settings.split.min_positives
        counted = transforms.settled(transforms.count_items(labelled, split))
        self.interactions.unpersist()
        items = transforms.settled(transforms.catalog(counted, self.numbers))
        self.num_items = items.count()
        self.require_train(self.num_items, split)
        encoded = repeats.mark_newest(transforms.encode(labelled, items, self.partitions), settings.clean.duplicates)
        sequences = user_sequences(encoded, settings.max_history, split).persist(StorageLevel.DISK_ONLY)
        users = transforms.settled(sequences.drop("train", "whole", "holdout"))
        self.count_splits(counted, users)
        assigned = self.assign(users) if self.holds_out else None
        train_users = users.where(transforms.is_train_user(least))
        self.count_lengths(train_users, items)
        entries = self.entries(train_users)
        at_once(
            self.spark,
            lambda: self.write_train(sequences.where(transforms.is_train_user(least)), entries, building),
            *([lambda: self.write_holdout(sequences, assigned, building)] if assigned is not None else []),
            lambda: self.write_everyone(sequences, users, building),
            lambda: self.write_catalog(items, building),
            lambda: self.draw_values(counted, threshold, split),
        )
        sequences.unpersist()
        self.filtered.unpersist()

    def assign(self, users: DataFrame) -> DataFrame:
        """Halves the holdout users: raw_user_id, is_test."""
        holdout_users = users.where(transforms.is_holdout_user())
        assigned = transforms.settled(transforms.assign_holdout(holdout_users, self.settings.split))
        tests, everyone = assigned.agg(F.count_if("is_test"), F.count("*")).collect()[0]
        self.log.done("assigned", test_users=tests, validation_users=everyone - tests)
        return assigned

    def write_train(self, sequences: DataFrame, entries: int, building: Location) -> None:
        """Writes the train shards. entries: ids in all their lists."""
        settings = self.settings
        users = self.log.counts["train_users"]["users"]
        shards = shard_count(entries, users, self.num_items, settings.shard_mb)
        lists = sequences.select(F.col("raw_user_id").alias("user_id"), "train.*")
        self.written += write_users(lists, building / "train", SCHEMAS["train"], shards)
        self.log.say("written", f"train, {counted(shards, 'shard')}")

    def write_everyone(self, sequences: DataFrame, users: DataFrame, building: Location) -> None:
        """Writes the whole history of every user."""
        limit = F.lit(self.settings.max_history)
        positives = F.col("train_positives") + F.col("holdout_positives")
        rows = F.col("train_rows") + F.col("holdout_rows")
        entries = sum((F.least(c, limit) for c in (rows, positives, rows - positives)), rows)
        total, entries = users.agg(F.count("*"), F.sum(entries)).collect()[0]
        self.log.done("users", users=total)
        shards = shard_count(entries, total, self.num_items, self.settings.shard_mb)
        lists = sequences.select(F.col("raw_user_id").alias("user_id"), "whole.*")
        self.written += write_users(lists, building / USERS, SCHEMAS[USERS], shards, USERS_AT_ONCE)

    def write_catalog(self, items: DataFrame, building: Location) -> None:
        """Writes items.parquet, and titles.parquet if the source has titles."""
        self.written.append(write_items(items, building))
        titles = self.settings.titles
        if titles.file:
            found = read_titles(self.reader.titles, titles)
            if found is None:
                self.log.say("titles", f"no {titles.file} in the raw directory: lists will show raw ids only")
            else:
                entry = write_titles(found, building)
                self.written.append(entry)
                self.log.say("titles", f"{entry.rows:,} of {self.num_items:,} items have a title")

    def draw_values(self, counted: DataFrame, threshold: float, split: int) -> None:
        """Counts relevance and time, and draws the report's figures."""
        ends = [F.min("low"), F.max("high"), F.min("first"), F.max("last")]
        low, high, first, last = counted.agg(*ends).collect()[0]
        drawn = histograms(self.filtered, {"relevance": (low, high), "timestamp": (first, last)}, BINS)
        self.distributions.relevance.extend(drawn["relevance"])
        self.distributions.activity.extend(drawn["timestamp"])
        shown = split if self.holds_out else None
        self.figures = draw(self.distributions, threshold, shown, self.unit)

    def count_splits(self, counted: DataFrame, users: DataFrame) -> None:
        """Logs sizes after the filter, of train, and of the holdout without users or items that train lacks."""
        rows, positives, num_items = counted.agg(F.sum("rows"), F.sum("positives"), F.count("*")).collect()[0]
        self.log.done("filtered", rows=rows, users=self.filtered_users, items=num_items, positives=positives)
        likes = "the set of likes after the filter"
        transforms.require_rows(
            positives, likes, "say with feedback.threshold, or other settings of feedback, what a like is"
        )
        in_train, in_holdout = transforms.is_in_train(), transforms.is_holdout_user()
        train_rows, train_users, holdout_rows, holdout_users = users.agg(
            F.sum("train_rows"),
            F.count_if(in_train),
            F.sum(F.when(in_holdout, F.col("holdout_rows")).otherwise(0)),
            F.count_if(in_holdout),
        ).collect()[0]
        self.log.done("train", rows=train_rows, users=train_users, items=self.num_items)
        if not self.holds_out:
            return
        self.log.done("holdout", rows=holdout_rows, users=holdout_users)
        transforms.require_rows(
            holdout_rows,
            "the holdout (without users and items that train lacks)",
            "lower --split.quantile, or use data with longer user histories",
        )

    def count_lengths(self, train_users: DataFrame, items: DataFrame) -> None:
        """Counts the lengths of train histories, before the cut to max_history, and the popularity of items."""
        positive, every = F.col("train_positives"), F.col("train_rows")
        kinds = zip(LENGTHS, (every, positive, every - positive), strict=True)
        pairs = F.explode(F.array(*[F.struct(F.lit(k).alias("kind"), v.alias("length")) for k, v in kinds]))
        counted = train_users.select(pairs.alias("pair")).groupBy("pair.kind", "pair.length").count().collect()
        lengths: dict[str, dict[int, int]] = {kind: {} for kind in LENGTHS}
        for row in counted:
            lengths[row["kind"]][row["length"]] = row["count"]
        total = sum(lengths["all"].values())
        self.log.done("train_users", users=total)
        least = self.settings.split.min_positives
        transforms.require_rows(total, f"train (users with at least {least} positives)", "lower --split.min-positives")
        for kind in LENGTHS:
            self.log.counts[f"length_{kind}"] = length_quantiles(lengths[kind])
        popular = items.groupBy((F.col("num_positive") + F.col("num_negative")).alias("actions")).count().collect()
        self.distributions.lengths.update(lengths)
        self.distributions.popularity.update({row["actions"]: row["count"] for row in popular})

    def entries(self, train_users: DataFrame) -> int:
        """Number of ids in all lists of the train shards."""
        limit = F.lit(self.settings.max_history)
        negatives = F.col("train_rows") - F.col("train_positives")
        columns = (F.col("train_rows"), F.col("train_positives"), negatives)
        return train_users.agg(F.sum(sum((F.least(c, limit) for c in columns), F.lit(0)))).collect()[0][0]

    def write_holdout(self, sequences: DataFrame, assigned: DataFrame, building: Location) -> None:
        """Writes the validation and test shards."""
        settings = self.settings
        least = settings.split.min_positives
        enough = transforms.is_holdout_user() & transforms.is_train_user(least) & (F.col("holdout_positives") >= least)
        chosen = sequences.where(enough).join(assigned, on="raw_user_id", how="inner")
        chosen = chosen.select(F.col("raw_user_id").alias("user_id"), "is_test", "holdout.*")
        chosen.persist(StorageLevel.MEMORY_AND_DISK)
        way_out = "lower --split.min-positives or --split.quantile, or use more data"
        for part, wanted in (
            ("validation", ~F.col("is_test") & F.col("target_is_positive")),
            ("test", F.col("is_test")),
        ):
            part_rows = chosen.where(wanted)
            lists = [f.name for f in SCHEMAS[part] if pa.types.is_list(f.type) and f.type.value_type == pa.int32()]
            total, positive, interactions, crowded, entries = part_rows.agg(
                F.count("*"),
                F.count_if("target_is_positive"),
                F.sum(F.size("holdout_items")),
                F.count_if(F.size("seen_items") >= self.num_items - LIST_LENGTH),
                F.sum(sum((F.size(name) for name in lists), F.lit(0))),
            ).collect()[0]
            targets = {"positive_targets": positive, "negative_targets": total - positive}
            self.log.done(part, users=total, **targets, holdout_interactions=interactions or 0)
            if crowded > total / 2:
                few = f"{crowded:,} of {total:,} {part} users have seen all but {LIST_LENGTH} items or fewer"
                what = f"for them, HR@{LIST_LENGTH} is 1 whatever the model, and NDCG@{LIST_LENGTH} says little"
                self.warnings.append(f"{few}; {what}")
            transforms.require_rows(total, f"{part} (users with enough positives in the holdout)", way_out)
            if few := few_liked_targets(part, positive):
                self.warnings.append(few)
            shards = shard_count(entries, total, self.num_items, settings.shard_mb)
            self.written += write_users(part_rows, building / part, SCHEMAS[part], shards)
        chosen.unpersist()
