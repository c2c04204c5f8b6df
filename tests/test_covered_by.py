"""Every module has a test file of its name, tests/<room>/test_<module>.py, or a line here that names its test."""

from pathlib import Path

TESTS = Path(__file__).parent

COVERED_BY = {
    # commands
    "pnfrec_dist.__main__": "test_commands.py",
    "pnfrec_dist.train": "integration/test_train.py",
    "pnfrec_dist.evaluate": "inference/test_batch_job.py",
    "pnfrec_dist.recommend": "integration/test_recommend.py",
    "pnfrec_dist.serve": "integration/test_serve.py",
    "pnfrec_dist.export": "inference/test_export.py",
    "pnfrec_dist.reproduce": "integration/test_reproduce.py",
    "pnfrec_dist.tracking.__main__": "integration/test_tracking.py",
    "tune.__main__": "integration/test_tune.py",
    "spark_jobs.__main__": "integration/test_prepare.py",
    "spark_jobs.prepare": "integration/test_prepare.py",
    # the top of the package, and what all modules share
    "pnfrec_dist.distributed": "training/test_loop_ranks.py",
    "pnfrec_dist.config.dataset_settings": "config/test_settings.py",
    "pnfrec_dist.config.inference_settings": "inference/test_batch_job.py",
    "pnfrec_dist.config.mappings": "config/test_settings.py",
    "pnfrec_dist.config.histories": "data/test_collate.py",
    "pnfrec_dist.data.batches": "data/test_collate.py",
    "pnfrec_dist.data.prepared": "data/test_schema.py",
    "pnfrec_dist.data.user_histories": "inference/test_list_maker.py",
    "pnfrec_dist.model.item_table": "model/test_top_k.py",
    "pnfrec_dist.model.standalone_encoder": "inference/test_export.py",
    "pnfrec_dist.model.block": "model/test_encoder.py",
    "pnfrec_dist.model.sasrec_block": "model/test_encoder.py",
    "pnfrec_dist.losses.chunks": "losses/test_sampled_softmax.py",
    "pnfrec_dist.training.initial_model": "training/test_step.py",
    # Ray and MLflow
    "pnfrec_dist.cluster.environment": "integration/test_train.py",
    "pnfrec_dist.tracking.model_registry": "integration/test_model_registry.py",
    "pnfrec_dist.tracking.run": "integration/test_tracking.py",
    "pnfrec_dist.tracking.sender": "integration/test_tracking.py",
    "pnfrec_dist.tracking.system_metrics": "integration/test_reproduce.py",
    # inference
    "pnfrec_dist.inference.artifact": "inference/test_export.py",
    "pnfrec_dist.inference.user_cards": "inference/test_list_maker.py",
    "pnfrec_dist.inference.item_filters": "inference/test_batch_job.py",
    "pnfrec_dist.inference.gamma_search": "inference/test_batch_job.py",
    "pnfrec_dist.inference.pyfunc_script": "inference/test_pyfunc.py",
    # experiments and sweeps
    "pnfrec_dist.experiments.logged_result": "integration/test_tracking.py",
    "pnfrec_dist.experiments.reproduction_plan": "experiments/test_reproduction.py",
    "pnfrec_dist.experiments.plots": "experiments/test_reproduction.py",
    "pnfrec_dist.experiments.report": "experiments/test_reproduction.py",
    "pnfrec_dist.experiments.comparison": "experiments/test_reproduction.py",
    "tune.records": "tune/test_space.py",
    "tune.report": "integration/test_tune.py",
    "tune.search": "tune/test_space.py",
    "tune.trial": "integration/test_tune.py",
    # preparation
    "spark_jobs.raw_files": "spark_jobs/test_sources.py",
    "spark_jobs.text_rows": "spark_jobs/test_sources.py",
    "spark_jobs.parquet_rows": "integration/test_log_columns.py",
    "spark_jobs.file_hints": "integration/test_log_files.py",
    "spark_jobs.times": "spark_jobs/test_clean.py",
    "spark_jobs.build": "integration/test_prepare_protocol.py",
    "spark_jobs.fetch": "spark_jobs/test_sources.py",
    "spark_jobs.report_figures": "integration/test_prepare.py",
    "spark_jobs.reading": "spark_jobs/test_sources.py",
    "spark_jobs.stage_log": "integration/test_prepare.py",
    "spark_jobs.package": "integration/test_prepare_faults.py",
    "spark_jobs.report": "integration/test_prepare.py",
    "spark_jobs.synthetic": "spark_jobs/test_sources.py",
    "spark_jobs.transforms": "spark_jobs/test_protocol.py",
}


def own_test(path: Path) -> str:
    """pnfrec_dist/training/loop.py -> "training/test_loop.py", tune/space.py -> "tune/test_space.py" (in tests/)."""
    rooms = path.parent.parts[path.parts[0] == "pnfrec_dist" :]
    return Path(*rooms, f"test_{path.name}").as_posix()


def test_every_module_has_a_test_file_of_its_name_or_a_line_in_the_list() -> None:
    """A line must be removed if its module is gone or has its own test file."""
    missing, without = [], set()
    for package in ("pnfrec_dist", "spark_jobs", "tune"):
        for path in sorted((TESTS.parent / package).rglob("*.py")):
            place = path.relative_to(TESTS.parent)
            if path.name != "__init__.py" and not (TESTS / own_test(place)).exists():
                module = ".".join(place.with_suffix("").parts)
                without.add(module)
                missing += [] if module in COVERED_BY else [f"{module}: tests/{own_test(place)}"]
    assert not missing, "neither a test file of its name nor a line in COVERED_BY:\n" + "\n".join(missing)
    stale = sorted(COVERED_BY.keys() - without)
    assert not stale, f"remove these lines of COVERED_BY: {stale}"
    gone = sorted({file for file in COVERED_BY.values() if not (TESTS / file).exists()})
    assert not gone, f"COVERED_BY names files that do not exist: {gone}"
