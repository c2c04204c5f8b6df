"""The command: reads the flags, checks whether the data set is up to date, builds it and prints a summary."""

import contextlib
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException

from pnfrec_dist.cli import command, parse_flags, selected
from pnfrec_dist.config.conf_files import load_conf
from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.data.schema import REPORT_NAME, Manifest, settings_hash
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import writing
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.text import counted, file_size
from spark_jobs.appending import AppendingReader, ToRead, appended
from spark_jobs.build import Build
from spark_jobs.conditions import evaluation_error
from spark_jobs.fetch import obtain_raw
from spark_jobs.kept_rows import KeptRows
from spark_jobs.publish import build_directory, publish, whole_manifest
from spark_jobs.raw_files import RawFile, describe_sources, find_raw
from spark_jobs.reading import Reader
from spark_jobs.report import complaint, summary
from spark_jobs.session import local_cores, partitions_for, spark_session, stop_session
from spark_jobs.sources import check_files
from spark_jobs.stage_log import StageLog
from spark_jobs.verify import verify, verify_content


@dataclass(frozen=True)
class PrepareSettings(DatasetSettings):
    """Builds a prepared data set (per-user positive/negative sequence shards in Parquet) from raw interactions.

    Defaults come from conf/dataset/<dataset>.yaml; any flag below overrides them.
    """

    dataset: str = "synthetic"
    """name of a file in conf/dataset/"""
    raw: str = ""
    """directory (or file, or URI) of the raw data; empty: data/raw/<dataset>, generated or downloaded if missing"""
    data_dir: str = "data/prepared"
    """directory (or URI) of prepared data sets"""
    spark_master: str = ""
    """Spark master URL; empty: all cores of this machine, or the master of spark-submit"""
    partitions: int = 0
    """partitions of each shuffle; 0: one per 32 MB of input"""
    force: bool = False
    """build even if nothing has changed"""
    keep_rows: bool = False
    """keep the rows that were read beside the data set, so that --append can add new files later"""
    append: str = ""
    """directory (or file) with new raw files: only those that are not in the data set yet are read; the result is that
    of a build from all files. Needs a build with --keep-rows before"""
    verify: str = ""
    """only check every file of the prepared data set in this directory"""


def main(args: Sequence[str]) -> None:
    """The command: python -m spark_jobs."""
    name = selected(args, {"dataset": "synthetic"})["dataset"]
    in_conf = load_conf("dataset", name, DatasetSettings())
    default = PrepareSettings(**vars(in_conf), dataset=name)
    settings = parse_flags(PrepareSettings, default, args, command("prep"))
    if any(arg.partition("=")[0] == "--verify" for arg in args):
        if not settings.verify:
            raise InputError("--verify is ''; it must be the directory of a prepared data set")
        _verify(Location(settings.verify))
        return
    if (settings.append or settings.keep_rows) and settings.reading().order == "rows":
        flag = "--append" if settings.append else "--keep-rows"
        raise InputError(f"{flag} needs times: with source.timestamp none, rows are numbered over all files together")
    if settings.partitions < 0:
        raise InputError(f"--partitions is {settings.partitions}; it must be >= 0 (0: one per 32 MB of input)")
    logging.getLogger().addHandler(logging.NullHandler())  # py4j logs a trace there if Ctrl-C interrupts a call
    final = (Location(settings.data_dir) / name).resolved()
    if final.is_file():
        raise InputError(f"{final} is a file, but must be the data set's directory; choose another --data-dir")
    started = time.monotonic()
    by_flags = in_conf.prepared() if in_conf.prepared() != settings.prepared() else None
    with contextlib.ExitStack() as stack:
        kept_rows = KeptRows(final)
        if settings.append or settings.keep_rows:
            stack.enter_context(kept_rows.locked())
        to_append = settings.append and appended(name, settings, settings.append, kept_rows)
        found = to_append if settings.append else _all_raw(name, settings, final)
        if not found:
            return
        build, manifest = _built(name, settings, Place(final, kept_rows, by_flags, started), found)
    print(f"\n{summary(manifest, settings.expected)}\n")
    print(f"wrote {final} in {time.monotonic() - started:.0f} s; report: {final / REPORT_NAME}")
    print(f"next: {_next_command(name, settings, has_own_settings=by_flags is not None)}")
    for warning in build.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    _complain(manifest, settings)


@dataclass(frozen=True)
class Place:
    """Where a data set is built, and since when."""

    final: Location
    kept_rows: KeptRows
    conf: dict[str, Any] | None
    """see Manifest.conf"""
    started: float


def _all_raw(name: str, settings: PrepareSettings, final: Location) -> ToRead | None:
    """All raw files; None if the data set is up to date, which is said."""
    files = find_raw(name, settings)
    lacks_rows = settings.keep_rows and KeptRows(final).read() is None
    manifest = None if settings.force or lacks_rows else _up_to_date(final, settings, files)
    if manifest:
        source = "same source, same settings" if files else "same settings; the raw data are not there to compare"
        print(f"{final} is up to date ({source}); --force builds it again")
        if not manifest.has_interactions:
            print("It is of an earlier version, without the data for an evaluation on many points; --force adds them")
        _complain(manifest, settings)
        return None
    if not files:
        obtain_raw(name, settings.source, settings.titles.file)
        files = find_raw(name, settings)
        if not files:
            raise InputError(f"{settings.source.url} holds no file {settings.source.files!r}; check source.files")
    check_files(files, settings.reading())
    return ToRead(files, describe_sources(files))


def _built(name: str, settings: PrepareSettings, place: Place, found: ToRead) -> tuple[Build, Manifest]:
    """Builds the data set in its place."""
    sizes = {entry.path: entry.bytes for entry in found.sources}
    partitions = found.buckets or settings.partitions or partitions_for(sizes, local_cores())
    spark = spark_session(
        settings.spark_master,
        input_bytes=sum(sizes.values()),
        partitions=partitions,
        max_history=settings.max_history,
    )
    log = StageLog(place.started)
    try:
        with writing(str(place.final), "choose another --data-dir"), build_directory(place.final) as building:
            if settings.append or settings.keep_rows:
                if settings.keep_rows and not settings.append:
                    place.kept_rows.delete()
                reader: Reader = AppendingReader(spark, settings, found.files, log, place.kept_rows)
            else:
                reader = Reader(spark, settings, found.files, log)
            build = Build(name, reader, partitions, place.conf)
            manifest = build.run(building, found.sources)
            verify_content(building, manifest)
            publish(building, place.final)
            if type(reader) is Reader:  # what was kept is not of these files
                place.kept_rows.delete()
    except (PySparkException, Py4JJavaError) as error:
        raise _input_error(error, settings.conditions()) from error
    finally:
        stop_session(spark)
    return build, manifest


def _next_command(name: str, settings: PrepareSettings, *, has_own_settings: bool) -> str:
    """The command that trains on the data set."""
    own_place = "" if settings.data_dir == PrepareSettings.data_dir else f" --data-dir {shlex.quote(settings.data_dir)}"
    if settings.split.holdout == "none":
        own_place = f" --final RUN{own_place}"
    by_make = "" if has_own_settings or own_place else f" (or: make train DATASET={name})"
    return f"{command('train')} --dataset {name}{own_place}{by_make}"


def _verify(directory: Location) -> None:
    manifest = verify(directory)
    size = sum(entry.bytes for entry in manifest.files)
    print(
        f"{directory} is complete: {counted(len(manifest.files), 'file')}, {file_size(size)}, "
        f"{manifest.counts['train_users']['users']:,} training users, {manifest.num_items:,} items"
    )
    print(f"content {manifest.digest}")


def _up_to_date(final: Location, command: PrepareSettings, files: Sequence[RawFile]) -> Manifest | None:
    """The manifest of `final` if it is whole and made with these settings, from these files; no files: any source."""
    manifest = whole_manifest(final)
    if manifest is None or manifest.settings_hash != settings_hash(command.prepared()):
        return None
    if files and [(e.path, e.bytes) for e in manifest.sources] != [(f.name, f.bytes) for f in files]:
        return None
    if files and manifest.sources != describe_sources(files):
        return None
    share = manifest.counts["quarantined"]["rows"] / manifest.counts["read"]["rows"]
    return manifest if share <= command.clean.max_quarantine_share else None


def _complain(manifest: Manifest, command: PrepareSettings) -> None:
    wrong = complaint(manifest, command.expected)
    if wrong:
        way_out = "is the file complete, unchanged and of the right version? (`expected` in conf/dataset/*.yaml)"
        print(f"\nWARNING: {wrong}; {way_out}", file=sys.stderr)


def _input_error(error: Exception, conditions: Mapping[str, str] | None = None) -> Exception:
    """InputError for a source file that cannot be read to its end, else the error itself."""
    text = str(error)
    failed = evaluation_error(text, conditions or {})
    if failed:
        return failed
    missing = re.search(r"ModuleNotFoundError: No module named '(pyarrow|numpy|pnfrec_dist|spark_jobs|pandas)'", text)
    if missing:
        python = os.environ.get("PYSPARK_PYTHON", "python3")
        way_out = "set PYSPARK_PYTHON to a Python that has it on every machine (docs/cluster/spark.sh)"
        return InputError(f"Spark's workers run PYSPARK_PYTHON={python}, which has no {missing[1]}; {way_out}")
    found = re.search(r"FAILED_READ_FILE[.\w]*\] .*? file (\S+?)\.? ", text)
    if not found:
        return error
    cause = re.findall(r"Caused by: [\w.]+: (.+)", text)
    return InputError(
        f"{found.group(1)} cannot be read to its end ({cause[-1] if cause else 'damaged'}); get a complete copy"
    )
