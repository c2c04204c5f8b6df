"""The report of a stage (table, importance, figures), and the file with the winner's training settings."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml

from pnfrec_dist.config.conf_files import CHOSEN_BY_FLAG
from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.evaluation.bootstrap import spread
from pnfrec_dist.evaluation.metrics import LOGGED_SELECTION, SELECTION_METRIC
from pnfrec_dist.experiments import plots
from pnfrec_dist.files.atomic import write_text
from pnfrec_dist.files.tables import markdown_table, write_csv
from pnfrec_dist.files.text import duration, score
from tune.options import FOUND_BY
from tune.records import Record, ranked
from tune.space import Stage, described

SHOWN = 10
LEFT_OUT = CHOSEN_BY_FLAG | {
    *("data_dir", "output_dir", "experiment", "ray_address"),
    *("num_workers", "min_workers", "num_gpus", "max_failures", "stall_timeout"),
}
"""Not in best.yaml: settings of the machine, and those that flags choose."""


def write_stage_report(directory: Path, stage: Stage, records: Sequence[Record]) -> None:
    """Writes stage.md, trials.csv, and figures if at least two trials have a score."""
    names = [parameter.name for parameter in stage.parameters]
    head = ["trial", *names, "state", f"validation_{SELECTION_METRIC}", "best_epoch", "epochs", "seconds", "reason"]
    rows = []
    for record in records:
        row = [record.name, *(record.point[name] for name in names), record.state, record.best_score]
        rows.append([*row, record.best_epoch, len(record.epochs), round(record.seconds, 1), record.reason])
    write_csv(directory / "trials.csv", head, rows)
    scored = [record for record in records if record.best_score is not None]
    text = f"# Stage {stage.name}\n\n{stage.described()}.\n\n{stage_markdown(stage, records)}\n"
    if len(scored) > 1:
        points, scores = [record.point for record in scored], [record.best_score or 0.0 for record in scored]
        figures = directory / "figures"
        plots.save_png(plots.trials_over_parameters(names, points, scores), figures / "parameters.png")
        text += "\n![score over each setting](figures/parameters.png)\n"
        if len(names) > 1:
            title = "NDCG_p@10"
            plots.save_png(plots.parallel_coordinates(names, points, scores, title), figures / "parallel.png")
            text += "\n![parallel coordinates](figures/parallel.png)\n"
        if (weight := _weight(names)) is not None:
            values = {p[names[0]]: {LOGGED_SELECTION: spread([s])} for p, s in zip(points, scores, strict=True)}
            plots.save_png(
                plots.weight_curve(weight, stage.model, values, (LOGGED_SELECTION,)), figures / f"{weight}.png"
            )
            text += f"\n![over {weight}](figures/{weight}.png)\n"
    write_text(directory / "stage.md", text)


def _weight(names: Sequence[str]) -> str | None:
    """alpha or beta, if a stage searches nothing else."""
    return names[0].partition(".")[2] if len(names) == 1 and names[0] in ("loss.alpha", "loss.beta") else None


def stage_markdown(stage: Stage, records: Sequence[Record]) -> str:
    """The best trials, how the others ended, and which setting matters."""
    names = [parameter.name for parameter in stage.parameters]
    rows = []
    for record in ranked(records)[:SHOWN]:
        values = [record.point[name] for name in names]
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        cells += [score(record.best_score), str(record.best_epoch or "-"), str(len(record.epochs)), record.state]
        rows.append(cells)
    head = [*names, "validation NDCG_p@10", "best epoch", "epochs", "state"]
    table = markdown_table(head, rows, ">" * (len(head) - 1) + "<")
    states = {state: sum(record.state == state for record in records) for state in ("finished", "stopped", "failed")}
    counted = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    mean = duration(statistics.mean(record.seconds for record in records))
    parts = [table, f"{len(records)} trials: {counted}; {mean} per trial on average. Scores are on validation users."]
    if importances := importance(stage, records):
        shares = [[name, f"{value:.2f}"] for name, value in importances.items()]
        parts += ["Importance of the settings (fANOVA of the scores):", markdown_table(["setting", "share"], shares)]
    failed = [f"- {described(record.point)}: {record.reason}" for record in records if record.state == "failed"]
    if failed:
        parts.append("Failed trials:\n\n" + "\n".join(failed[:SHOWN]))
    return "\n\n".join(parts)


def importance(stage: Stage, records: Sequence[Record]) -> dict[str, float]:
    """Setting -> its share of the variance of scores, by Optuna's fANOVA; empty if there are too few trials."""
    names = [parameter.name for parameter in stage.parameters]
    scored = [record for record in records if record.best_score is not None]
    if len(names) < 2 or len({record.best_score for record in scored}) < 4:
        return {}
    choices = {name: tuple(dict.fromkeys(_choice(record.point[name]) for record in scored)) for name in names}
    used = [name for name in names if len(choices[name]) > 1]
    if len(used) < 2:
        return {}
    space: dict[str, Any] = {}
    for name in used:
        values = [record.point[name] for record in scored]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            space[name] = optuna.distributions.FloatDistribution(min(values), max(values))
        else:
            space[name] = optuna.distributions.CategoricalDistribution(choices[name])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    for record in scored:
        params = {n: float(record.point[n]) if _is_number(space[n]) else _choice(record.point[n]) for n in used}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=record.best_score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _is_number(distribution: Any) -> bool:
    return isinstance(distribution, optuna.distributions.FloatDistribution)


def _choice(value: Any) -> Any:
    return str(value) if isinstance(value, list | tuple) else value


def workers_flag(settings: Settings) -> str:
    """The flag of train for as many workers as a trial had."""
    return f"--num-gpus {settings.num_gpus}" if settings.num_gpus else f"--num-workers {settings.num_workers or 1}"


def best_yaml(settings: Settings, stage: Stage, record: Record, command: str, sweep_id: str) -> str:
    """Complete settings for `python -m pnfrec_dist.train --config`, after comments that say where they come from."""
    content = {name: value for name, value in to_mapping(settings).items() if name not in LEFT_OUT}
    head = [
        f"# python -m pnfrec_dist.train --dataset {settings.dataset} --config best.yaml {workers_flag(settings)}",
        f"{FOUND_BY}{command}",
        f"# MLflow run {sweep_id or '(not known)'}, stage {stage.name}, {record.name} ({described(record.point)})",
        f"# validation NDCG_p@10 {record.best_score:.6f} in epoch {record.best_epoch} (depends on the worker count)",
    ]
    return "\n".join(head) + "\n" + yaml.safe_dump({"model": settings.model, **content}, sort_keys=False)


def write_best(path: Path, content: str) -> None:
    """Writes the file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content)
