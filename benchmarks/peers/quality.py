"""The peers' lists and this library's models under one protocol: both evaluations, intervals over users."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.environments import ROOT
from benchmarks.peers.tasks import Task, write_lists
from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.config.settings import EvaluationSettings, Settings
from pnfrec_dist.data.points import Points
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.evaluation.holdout import Evaluation
from pnfrec_dist.evaluation.metrics import of_points
from pnfrec_dist.experiments.comparison import Recorded
from pnfrec_dist.inference.list_evaluation import Protocol, comparisons, lists_evaluated
from pnfrec_dist.inference.other_lists import lists_of, read_rows
from pnfrec_dist.training.held_out import MODEL
from pnfrec_dist.training.result import Result, TestPoints, TestUsers, read_result, read_test_points, read_test_users


def of_peer(name: str, data: PreparedData, task: Task) -> Recorded:
    """A peer's training as a comparison takes it. Its lists go through the files of evaluate --lists."""
    path = Path(task.out) / "named_lists.parquet"
    write_lists(data, task, path)
    rows, protocol = read_rows(path, data, "test"), Protocol(data, "test", EvaluationSettings(), None)
    found: dict[bool, Evaluation] = {}
    users, points = data.holdout("test"), protocol.points()
    for ranked, target_R in comparisons(protocol, rows):
        lists = lists_of(rows, target_R, ranked)
        found[isinstance(ranked, Points)] = lists_evaluated(lists, ranked, data.num_items, protocol.evaluation)
    result = Result(
        settings=to_mapping(Settings()),
        data_digest=data.manifest.digest,
        num_items=data.num_items,
        num_workers=1,
        epochs=[],
        best_epoch=0,
        checkpoint="",
        test=found[False].metrics | of_points(found[True].metrics),
        floors={},
    )
    of_users = TestUsers(users.target_is_positive, {MODEL: found[False].target_rank})
    of_pts = TestPoints(points.user_P, points.target_is_positive, {MODEL: found[True].target_rank})
    return Recorded(name, task.seed, result, of_users, of_pts, key=name, has_model=False)


def of_own(data: PreparedData, arguments: argparse.Namespace) -> list[Recorded]:
    """Trainings of this library by `reproduce`, which stop by validation's points as the peers do. Finished ones are
    not run again. Of the arguments it reads models, seeds, epochs,
    hidden_size, at_a_time and work."""
    models, seeds, work = arguments.models, arguments.seeds, arguments.work
    directory = work / "runs" / f"reproduce-{data.directory.name}"
    line = ["--dataset", data.directory.name, "--data-dir", str(data.directory.parent), "--models", *models]
    line += ["--seeds", str(seeds), "--epochs", str(arguments.epochs)]
    line += ["--encoder.hidden_size", str(arguments.hidden_size), "--evaluation.select_on", "points"]
    line += ["--at-a-time", str(arguments.at_a_time)]
    log = work / "reproduce.txt"
    print(f"python -m pnfrec_dist.reproduce {' '.join(line)}; see {log}", flush=True)
    with log.open("a", encoding="utf-8") as output:
        done = subprocess.run(
            [sys.executable, "-m", "pnfrec_dist.reproduce", *line],
            cwd=work,
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"reproduce failed; see {log}")
    found = []
    for path in sorted(directory.glob("*/run.json")):
        result = read_result(path.parent)
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        if result is not None and settings["model"] in models and settings["seed"] <= seeds:
            users, points = read_test_users(path.parent), read_test_points(path.parent)
            found.append(Recorded(settings["model"], settings["seed"], result, users, points, path.parent.name, False))
    return sorted(found, key=lambda one: (models.index(one.model), one.seed))
