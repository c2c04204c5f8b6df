"""Compares a candidate with the champion on the newest validation points, and moves the alias in MLflow."""

from dataclasses import dataclass
from pathlib import Path

from pnfrec_dist.config.inference_settings import PromoteSettings
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.bootstrap import Interval, paired_point_intervals
from pnfrec_dist.evaluation.metrics import HEADLINE_CUTOFF, SELECTION_METRIC, metric_title
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.tables import text_table
from pnfrec_dist.files.text import score
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.inference.other_catalog import PointRanks, rank_points
from pnfrec_dist.inference.trained_model import open_trained
from pnfrec_dist.tracking.address import tracking_uri
from pnfrec_dist.tracking.champion import CHAMPION, Champion
from pnfrec_dist.tracking.model_registry import id_of_run
from pnfrec_dist.tracking.run import model_name
from pnfrec_dist.training.run_directory import RUN_FILE, read_run

SPLIT = "validation"
SHOWN = tuple(f"ndcg_{group}_at_{HEADLINE_CUTOFF}" for group in ("p", "n", "delta"))
T = "split_timestamp"
"""Tag of a version: T of the data on which it became the champion."""
COMPARED = "compared"
"""Tag of a version of a final training: MLflow's id of the run that chose it, which is compared for it."""
EXIT_WORSE = 1


@dataclass(frozen=True)
class Compared:
    """Candidate and champion on the same points."""

    candidate: PointRanks
    champion: PointRanks
    intervals: dict[str, Interval]
    """metric -> candidate minus champion"""

    def problem(self, margin: float) -> str:
        """Why the candidate is worse; "" if it is not."""
        interval, was = self.intervals[SELECTION_METRIC], self.champion.metrics[SELECTION_METRIC]
        title = metric_title(SELECTION_METRIC)
        if interval.high < 0:
            return f"{title} of the candidate is significantly lower: {interval.text}"
        if interval.difference < -margin * was:
            return (
                f"{title} of the candidate is lower by {-interval.difference / was:.1%}, more than --margin {margin:g}"
            )
        return ""

    def table(self) -> str:
        head = ["", "unknown targets", *map(metric_title, SHOWN)]
        rows = [
            [name, f"{of.num_unknown:,}", *(score(of.metrics.get(metric)) for metric in SHOWN)]
            for name, of in (("candidate", self.candidate), (CHAMPION, self.champion))
        ]
        found = [self.intervals.get(metric) for metric in SHOWN]
        return text_table(head, [*rows, ["difference", "", *("-" if i is None else i.text for i in found)]])


def promote(settings: PromoteSettings) -> int:
    """Prints the table. The exit code is 1 if the candidate is worse. Raises InputError for wrong input."""
    trained = open_trained(settings.run, settings.data_dir)
    evaluated = trained.settings.final or settings.run
    if trained.settings.final:
        print(f"{settings.run} is a final training; {evaluated}, which chose it, is compared for it")
        trained = open_trained(evaluated, settings.data_dir)
    data = open_prepared(Location(settings.data_dir) / (settings.dataset or trained.settings.dataset))
    data.require_whole(SPLIT)
    if trained.data_digest != data.manifest.digest:
        raise InputError(
            f"{evaluated} was trained on another state of the data than {data.directory}, so that it may have seen "
            "the points; train it on the newest data, or say where its data are with --data-dir"
        )
    uri = tracking_uri()
    champion = Champion(settings.name or model_name("pnfrec-dist", data.manifest.dataset), uri)
    reference = _tracked(settings.run, uri)
    holder = champion.version()
    facts = {"data_digest": data.manifest.digest, T: str(data.manifest.split_timestamp)}
    if evaluated != settings.run:
        facts[COMPARED] = _tracked(evaluated, uri)
    if holder is not None:
        if int(holder.tags.get(T, 0)) > data.manifest.split_timestamp:
            raise InputError(
                f"the champion was trained on newer data than {data.directory}; compare on its data or newer"
            )
        compared_by = holder.tags.get(COMPARED) or f"models:/{champion.name}/{holder.version}"
        other = open_trained(compared_by, settings.data_dir)
        compared = compare(trained, other, data)
        print(f"{champion.name}: {settings.run} beside version {holder.version}, the {CHAMPION}")
        print(f"{SPLIT} points of {data.directory}: {len(compared.candidate.points):,}\n\n{compared.table()}\n")
        if problem := compared.problem(settings.margin):
            print(f"not promoted: {problem}")
            return EXIT_WORSE
        facts |= _figures(compared)
    else:
        print(f"{champion.name} has no {CHAMPION} yet")
    if settings.dry_run:
        print("dry run: nothing was changed")
        return 0
    version = str(champion.register(reference, {"data_digest": data.manifest.digest}).version)
    if holder is not None and version == str(holder.version):
        print(f"version {version} is the {CHAMPION} already")
        return 0
    champion.promote(version, facts)
    told = f", in place of version {holder.version}" if holder is not None else ""
    print(f"{CHAMPION}: version {version}{told}; models:/{champion.name}@{CHAMPION}")
    return 0


def rollback(settings: PromoteSettings) -> int:
    """Prints which version has the alias again. Raises InputError if the champion replaced none."""
    name = settings.name or model_name("pnfrec-dist", settings.dataset)
    before, now = Champion(name, tracking_uri()).rollback()
    print(f"{CHAMPION}: version {before} again, in place of version {now}; models:/{name}@{CHAMPION}")
    return 0


def compare(candidate: Exported, champion: Exported, data: PreparedData) -> Compared:
    """Both models on the same points. Raises InputError for data without points."""
    own, other = rank_points(candidate, data, SPLIT), rank_points(champion, data, SPLIT)
    points, pair = own.points, (own.target_rank[None], other.target_rank[None])
    intervals = paired_point_intervals(SHOWN, *pair, points.target_is_positive, points.user_P)
    return Compared(own, other, intervals)


def _tracked(reference: str, uri: str) -> str:
    """The name of the model in MLflow. Raises InputError if MLflow does not have it."""
    directory = Path(reference)
    if not (directory / RUN_FILE).is_file():
        return reference.removeprefix("runs:/").removesuffix("/model")
    run = read_run(directory)
    return id_of_run(run.settings["experiment"], run.key, uri)


def _figures(compared: Compared) -> dict[str, str]:
    """Tags of the new champion: the figures of both, and the interval of the difference."""
    found = {}
    for metric in SHOWN:
        found[f"{metric}.candidate"] = score(compared.candidate.metrics.get(metric))
        found[f"{metric}.{CHAMPION}"] = score(compared.champion.metrics.get(metric))
        if interval := compared.intervals.get(metric):
            found[f"{metric}.difference"] = interval.text
    return found
