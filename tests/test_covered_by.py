"""Every module has a test file of its name, tests/<package>/test_<module>.py, or a line here that names its test."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGES = ("pnfrec_dist", "spark_jobs", "tune")

COVERED_BY = {
    # commands
    "pnfrec_dist.__main__": "test_commands.py",
    "pnfrec_dist.train": "integration/test_train.py",
    "pnfrec_dist.evaluate": "inference/test_batch_job.py",
    "pnfrec_dist.recommend": "integration/test_recommend.py",
    "pnfrec_dist.serve": "integration/test_serve.py",
    "pnfrec_dist.export": "inference/test_export.py",
    "pnfrec_dist.index": "inference/test_batch_job.py",
    "pnfrec_dist.inference.index_command": "inference/test_batch_job.py > pnfrec_dist.index",
    "pnfrec_dist.inference.candidates": "inference/test_item_index.py",
    "pnfrec_dist.promote": "integration/test_promote.py",
    "pnfrec_dist.reproduce": "integration/test_reproduce.py",
    "pnfrec_dist.tracking.__main__": "integration/test_tracking.py",
    "tune.__main__": "integration/test_tune.py",
    "spark_jobs.__main__": "integration/test_prepare.py",
    "spark_jobs.prepare": "integration/test_prepare.py",
    "spark_jobs.appending": "integration/test_append.py > spark_jobs.prepare",
    "spark_jobs.kept_rows": "integration/test_append.py",
    "spark_jobs.row_counts": "integration/test_append.py > spark_jobs.reading",
    # the top of the package, and what all modules share
    "pnfrec_dist.config.dataset_settings": "config/test_settings.py",
    "pnfrec_dist.config.inference_settings": "inference/test_batch_job.py > pnfrec_dist.recommend",
    "pnfrec_dist.config.mappings": "config/test_settings.py",
    "pnfrec_dist.data.batches": "data/test_collate.py",
    "pnfrec_dist.data.prepared": "data/test_schema.py",
    "pnfrec_dist.data.user_histories": "inference/test_list_maker.py",
    "pnfrec_dist.model.item_table": "model/test_top_k.py",
    "pnfrec_dist.model.standalone_encoder": "inference/test_export.py > pnfrec_dist.inference.export",
    "pnfrec_dist.model.block": "model/test_encoder.py > pnfrec_dist.model.encoder",
    "pnfrec_dist.model.sasrec_block": "model/test_dropout.py",
    "pnfrec_dist.losses.chunks": "losses/test_sampled_softmax.py > pnfrec_dist.losses.sampled_softmax",
    "pnfrec_dist.training.initial_model": "training/test_step.py",
    # Ray and MLflow
    "pnfrec_dist.cluster.environment": "integration/test_train.py",
    "pnfrec_dist.tracking.model_registry": "integration/test_model_references.py > pnfrec_dist.inference.trained_model",
    "pnfrec_dist.tracking.champion": "integration/test_promote.py > pnfrec_dist.experiments.challenger",
    "pnfrec_dist.tracking.logged_models": (
        "integration/test_promote.py > pnfrec_dist.experiments.challenger > pnfrec_dist.tracking.model_registry"
    ),
    "pnfrec_dist.experiments.challenger": "integration/test_promote.py",
    "pnfrec_dist.tracking.run": "integration/test_tracking.py",
    "pnfrec_dist.tracking.sender": "integration/test_tracking.py > pnfrec_dist.tracking.run",
    "pnfrec_dist.tracking.system_metrics": (
        "integration/test_reproduce.py > pnfrec_dist.reproduce > pnfrec_dist.experiments.reproduction"
        " > pnfrec_dist.experiments.tracked_training"
    ),
    # inference
    "pnfrec_dist.inference.artifact": "inference/test_export.py",
    "pnfrec_dist.inference.user_cards": "inference/test_list_maker.py",
    "pnfrec_dist.inference.item_filters": (
        "inference/test_batch_job.py > pnfrec_dist.recommend > pnfrec_dist.inference.batch_job"
    ),
    "pnfrec_dist.inference.other_lists": (
        "inference/test_list_evaluation.py > pnfrec_dist.evaluate > pnfrec_dist.inference.list_evaluation"
    ),
    "pnfrec_dist.inference.points_file": "inference/test_list_evaluation.py > pnfrec_dist.evaluate",
    "pnfrec_dist.inference.warm_start_source": "training/test_warm_start.py",
    "pnfrec_dist.inference.gamma_search": "inference/test_batch_job.py > pnfrec_dist.evaluate",
    "pnfrec_dist.inference.pyfunc_script": "inference/test_pyfunc.py > pnfrec_dist.inference.pyfunc",
    # experiments and sweeps
    "pnfrec_dist.cluster.actors": "integration/test_reproduce_at_a_time.py > pnfrec_dist.reproduce > "
    "pnfrec_dist.experiments.reproduction > pnfrec_dist.experiments.missing_trainings",
    "pnfrec_dist.experiments.training_actor": "integration/test_reproduce_at_a_time.py > pnfrec_dist.reproduce > "
    "pnfrec_dist.experiments.reproduction > pnfrec_dist.experiments.missing_trainings",
    "pnfrec_dist.experiments.logged_result": "integration/test_tracking.py",
    "pnfrec_dist.experiments.reproduction_plan": "experiments/test_reproduction.py",
    "pnfrec_dist.experiments.plots": "experiments/test_reproduction.py > pnfrec_dist.experiments.report",
    "pnfrec_dist.experiments.report": "experiments/test_reproduction.py",
    "pnfrec_dist.experiments.table_cells": "experiments/test_reproduction.py > pnfrec_dist.experiments.report",
    "pnfrec_dist.training.held_out": "training/test_loop.py",
    "spark_jobs.user_rows": "spark_jobs/test_sequences.py > spark_jobs.sequences",
    "pnfrec_dist.experiments.comparison": "experiments/test_reproduction.py",
    "tune.report": "integration/test_tune.py > tune.__main__ > tune.sweep",
    "tune.search": "tune/test_space.py",
    "tune.trial": "integration/test_tune.py > tune.__main__ > tune.sweep",
    # preparation
    "pnfrec_dist.config.source_settings": "spark_jobs/test_sources.py",
    "spark_jobs.feedback": "spark_jobs/test_clean.py > spark_jobs.clean",
    "spark_jobs.raw_files": "spark_jobs/test_sources.py",
    "spark_jobs.text_rows": "spark_jobs/test_sources.py",
    "spark_jobs.parquet_rows": "spark_jobs/test_sources.py > spark_jobs.sources",
    "spark_jobs.file_hints": "integration/test_log_files.py > spark_jobs.raw_files",
    "spark_jobs.times": "spark_jobs/test_clean.py",
    "spark_jobs.build": "integration/test_prepare_protocol.py",
    "spark_jobs.fetch": "spark_jobs/test_sources.py",
    "spark_jobs.report_figures": "integration/test_prepare.py > spark_jobs.build",
    "spark_jobs.reading": "integration/test_prepare_protocol.py > spark_jobs.build",
    "spark_jobs.report": "integration/test_prepare.py > spark_jobs.build",
    "spark_jobs.synthetic": "spark_jobs/test_sources.py",
    "spark_jobs.transforms": "spark_jobs/test_protocol.py",
}


"""Module -> the file that tests it and imports it. "FILE > A > B": FILE imports A, A imports B, and B the module."""


def own_test(path: Path) -> str:
    """pnfrec_dist/training/loop.py -> "training/test_loop.py", tune/space.py -> "tune/test_space.py" (in tests/)."""
    folders = path.parent.parts[path.parts[0] == "pnfrec_dist" :]
    return Path(*folders, f"test_{path.name}").as_posix()


def modules() -> dict[str, Path]:
    """Dotted name -> file, without __init__."""
    files = [file for package in PACKAGES for file in sorted((TESTS.parent / package).rglob("*.py"))]
    places = {file: file.relative_to(TESTS.parent).with_suffix("") for file in files if file.stem != "__init__"}
    return {".".join(place.parts): file for file, place in places.items()}


def names(file: Path, module: str) -> bool:
    """Whether a file, or one of tests/helpers that it imports, imports a module, or names it in a string: as the
    command `python -m`, as "module:object", or by its file.
    """
    text = file.read_text(encoding="utf-8")
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
    helpers = [TESTS / f"{name.replace('.', '/')}.py" for name in imported if name.startswith("helpers.")]
    command, last = module.removesuffix(".__main__"), module.rpartition(".")[2]
    in_string = re.search(rf'"{re.escape(command)}[":]|"{last}\.py"', text)
    return module in imported or bool(in_string) or any(names(helper, module) for helper in helpers if helper.is_file())


def test_every_module_has_a_test_file_of_its_name_or_a_line_in_the_list() -> None:
    """A line must be removed if its module is gone or has its own test file."""
    own = {module: own_test(file.relative_to(TESTS.parent)) for module, file in modules().items()}
    without = {module for module, test in own.items() if not (TESTS / test).exists()}
    missing = [f"{module}: tests/{own[module]}" for module in sorted(without - COVERED_BY.keys())]
    assert not missing, "neither a test file of its name nor a line in COVERED_BY:\n" + "\n".join(missing)
    stale = sorted(COVERED_BY.keys() - without)
    assert not stale, f"remove these lines of COVERED_BY: {stale}"


def test_the_test_that_a_line_names_imports_the_module() -> None:
    files, wrong = modules(), []
    for module, line in COVERED_BY.items():
        test, *through = line.split(" > ")
        chain = [TESTS / test, *(files[name] for name in through)]
        for link, target in zip(chain, [*through, module], strict=True):
            if not names(link, target):
                wrong.append(f"{module}: {link.relative_to(TESTS.parent)} does not import {target}")
    assert not wrong, "\n".join(wrong)
