"""The job: raw data set -> prepared data set. Wiring only; the steps are in the modules it names."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pnfrec_dist.cli import load_conf, parse_flags, selected
from pnfrec_dist.config import DatasetSettings
from pnfrec_dist.errors import InputError
from pnfrec_dist.schema import QUARANTINE, SCHEMA_VERSION, SCHEMAS, SPLITS, FileEntry, Manifest, settings_hash
from spark_jobs import transforms
from spark_jobs.clean import accepted, rejected, typed_rows
from spark_jobs.sequences import holdout_sequences, train_sequences
from spark_jobs.session import spark_session, stop_session
from spark_jobs.sources import describe_sources, find_raw, obtain_raw, read_rows
from spark_jobs.writer import build_directory, publish, whole_manifest, write_items, write_parts, write_users


@dataclass(frozen=True)
class PrepareSettings(DatasetSettings):
    """Builds a prepared data set (per-user positive/negative sequence shards in Parquet) from raw interactions.

    Defaults come from conf/dataset/<dataset>.yaml; any flag below overrides them.
    """

    dataset: str = "synthetic"
    """name of a file in conf/dataset/"""
    raw: str = ""
    """directory (or file) of the raw data; empty: data/raw/<dataset>, generated or fetched when absent"""
    data_dir: str = "data/prepared"
    """directory of prepared data sets"""
    spark_master: str = ""
    """Spark master URL; empty: all cores of this machine"""
    force: bool = False
    """build again even if nothing changed"""


def main(args: Sequence[str]) -> None:
    """The command: python -m spark_jobs."""
    name = selected(args, {"dataset": "synthetic"})["dataset"]
    default = PrepareSettings(**vars(load_conf("dataset", name, DatasetSettings())), dataset=name)
    command = parse_flags(PrepareSettings, default, args, "python -m spark_jobs")
    final = Path(command.data_dir) / name
    started = time.monotonic()
    files = find_raw(name, command)
    if not command.force and _is_up_to_date(final, command, files):
        source = "same source, same settings" if files else "same settings; its raw data is not at hand"
        print(f"{final} is up to date ({source}); --force builds it again")
        return
    files = files or obtain_raw(name, command)
    sources = describe_sources(files)
    spark = spark_session(command.spark_master, input_bytes=sum(s.bytes for s in sources))
    try:
        with build_directory(final) as building:
            manifest = _build(spark, command, name, files, sources, building, started)
            publish(building, final, manifest)
    finally:
        stop_session(spark)
    print(summary(manifest))
    print(f"wrote {final} in {time.monotonic() - started:.0f} s; next: make train DATASET={name}")


def _build(
    spark: SparkSession,
    settings: DatasetSettings,
    name: str,
    files: list[Path],
    sources: list[FileEntry],
    building: Path,
    started: float,
) -> Manifest:
    """Runs every step, writes the shards into `building`, returns the manifest."""
    counts: dict[str, dict[str, int]] = {}

    def done(stage: str, **numbers: int) -> None:
        counts[stage] = numbers
        text = "  ".join(f"{v:,} {k}" for k, v in numbers.items())
        print(f"[{time.monotonic() - started:5.0f} s] {stage:<14} {text}", flush=True)

    typed = typed_rows(read_rows(spark, files, settings.source), settings.source).persist(StorageLevel.DISK_ONLY)
    read, bad = typed.agg(F.count("*"), F.count("reason")).collect()[0]
    done("read", rows=read)
    done("quarantined", rows=bad)
    quarantine = rejected(typed, [f.name for f in files])
    _require_readable(quarantine, read, bad, settings.clean.max_quarantine_share)
    written = write_parts(quarantine.coalesce(1), building / QUARANTINE, SCHEMAS[QUARANTINE])

    interactions = accepted(typed).persist(StorageLevel.MEMORY_AND_DISK)
    kept = interactions.count()
    typed.unpersist()
    done("deduplicated", rows=read - bad - kept)
    done("interactions", **_size(interactions, rows=kept))
    transforms.require_rows(
        kept, str(files[0]), "no row of it is an interaction; check RAW (--raw) and the YAML's source"
    )

    threshold = transforms.resolve_threshold(interactions, settings.feedback.threshold)
    labelled = transforms.label_feedback(interactions, threshold)
    filtered = transforms.filter_support(labelled, settings.filter).persist(StorageLevel.MEMORY_AND_DISK)
    done("filtered", **_size(filtered), positives=filtered.where("is_positive").count())
    transforms.require_rows(counts["filtered"]["rows"], "the data set after the filter", "lower --filter.*")

    split = transforms.split_timestamp(filtered, settings.split.quantile)
    train, holdout = (part.persist(StorageLevel.MEMORY_AND_DISK) for part in transforms.split_by_time(filtered, split))
    done("train", **_size(train))
    done("holdout", **_size(holdout))
    quantile_hint = f"T = {split} leaves nothing there; change --split.quantile"
    transforms.require_rows(counts["train"]["rows"], "train", quantile_hint)
    transforms.require_rows(counts["holdout"]["rows"], "the holdout", quantile_hint)

    items = transforms.catalog(train).persist(StorageLevel.MEMORY_AND_DISK)
    written.append(write_items(items, building))
    item_ids = items.select("raw_item_id", "item_id")
    assigned = transforms.assign_holdout(holdout, settings.split).persist(StorageLevel.MEMORY_AND_DISK)
    tests = assigned.where("is_test").count()
    done("assigned", test_users=tests, validation_users=assigned.count() - tests)

    least = settings.split.min_positives
    train_users = transforms.users_with_positives(train, least).persist(StorageLevel.MEMORY_AND_DISK)
    done("train_users", users=train_users.count())
    train_rows = train.join(train_users, on="raw_user_id", how="left_semi").join(
        item_ids, on="raw_item_id", how="inner"
    )
    rows = train_sequences(train_rows, settings.max_history)
    written += write_users(rows, building / "train", SCHEMAS["train"], counts["train_users"]["users"])

    holdout_users = transforms.users_with_positives(holdout, least).join(train_users, on="raw_user_id", how="left_semi")
    users = assigned.join(holdout_users, on="raw_user_id", how="left_semi").persist(StorageLevel.MEMORY_AND_DISK)
    histories = train.unionByName(holdout).join(item_ids, on="raw_item_id", how="inner")
    rows = holdout_sequences(histories.join(users, on="raw_user_id", how="left_semi"), settings.max_history)
    rows = rows.join(users.withColumnRenamed("raw_user_id", "user_id"), on="user_id", how="inner").persist()
    for part, wanted in (("validation", ~F.col("is_test") & F.col("target_is_positive")), ("test", F.col("is_test"))):
        chosen = rows.where(wanted)
        total, positive = chosen.agg(F.count("*"), F.count_if("target_is_positive")).collect()[0]
        done(part, users=total, positive_targets=positive, negative_targets=total - positive)
        way_out = "lower --split.min-positives or --split.quantile, or bring more data"
        transforms.require_rows(total, f"{part} (users with enough positives in the holdout)", way_out)
        written += write_users(chosen, building / part, SCHEMAS[part], total)

    return Manifest(
        schema_version=SCHEMA_VERSION,
        dataset=name,
        settings=settings.prepared(),
        settings_hash=settings_hash(settings.prepared()),
        sources=sources,
        counts=counts,
        threshold=threshold,
        split_timestamp=split,
        files=sorted(written, key=lambda entry: entry.path),
    )


def _is_up_to_date(final: Path, command: PrepareSettings, files: list[Path]) -> bool:
    """Whether `final` is whole, made with these settings, and from these files where there are any."""
    manifest = whole_manifest(final)
    return (
        manifest is not None
        and manifest.settings_hash == settings_hash(command.prepared())
        and (not files or manifest.sources == describe_sources(files))
        and _quarantine_share(manifest.counts) <= command.clean.max_quarantine_share
    )


def _size(interactions: DataFrame, rows: int | None = None) -> dict[str, int]:
    users, items, total = interactions.agg(
        F.count_distinct("raw_user_id"), F.count_distinct("raw_item_id"), F.count("*")
    ).collect()[0]
    return {"rows": rows if rows is not None else total, "users": users, "items": items}


def _quarantine_share(counts: dict[str, dict[str, int]]) -> float:
    return counts["quarantined"]["rows"] / max(counts["read"]["rows"], 1)


def _require_readable(quarantine: DataFrame, read: int, bad: int, max_share: float) -> None:
    """Raises InputError naming the first unreadable row when there are more than max_share of them."""
    if bad == 0 or bad / read <= max_share:
        return
    first = quarantine.head()
    assert first is not None
    way_out = f"mend them, or set them aside with --clean.max-quarantine-share {_round_up(bad / read)}"
    if bad == read:
        way_out = "no row can be read: check source.separator, source.header and the columns in the YAML"
    raise InputError(
        f"{bad} of {read} rows could not be read, first in {first['source_file']}: "
        f"{first['row']!r} ({first['reason']}); {way_out}"
    )


def _round_up(share: float) -> float:
    """The next of 0.001, 0.01, 0.1, ... at or above a share, below 1."""
    return next((s for s in (0.001, 0.01, 0.1, 0.5, 0.9) if s >= share), 0.99)


def summary(manifest: Manifest) -> str:
    """Table 1's columns and the split sizes, as text."""
    counts = manifest.counts
    size = counts["filtered"]
    negative = 1 - size["positives"] / size["rows"]
    lines = [
        f"{manifest.dataset}: {size['users']:,} users, {size['items']:,} items, {size['rows']:,} actions, "
        f"{negative:.0%} negative (relevance < {manifest.threshold:g})",
        f"split at T = {manifest.split_timestamp}",
    ]
    train = counts["train"]
    lines.append(
        f"  train       {counts['train_users']['users']:,} users ({train['users']:,} before the min-positives rule), "
        f"{train['items']:,} items, {train['rows']:,} actions"
    )
    for part in SPLITS[1:]:
        numbers = counts[part]
        lines.append(
            f"  {part:<11} {numbers['users']:,} users: {numbers['positive_targets']:,} positive and "
            f"{numbers['negative_targets']:,} negative targets"
        )
    return "\n".join(lines)
