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
    "pnfrec_dist.reproduce": "integration/test_reproduce.py",
    "pnfrec_dist.tracking.__main__": "integration/test_tracking.py",
    "tune.__main__": "integration/test_tune.py",
    "spark_jobs.__main__": "integration/test_prepare.py",
    "spark_jobs.prepare": "integration/test_prepare.py",
    # the top of the package, and what all modules share
    "pnfrec_dist.distributed": "training/test_loop_ranks.py",
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
    "pnfrec_dist.inference.gamma_search": "inference/test_batch_job.py > pnfrec_dist.evaluate",
    "pnfrec_dist.inference.pyfunc_script": "inference/test_pyfunc.py > pnfrec_dist.inference.pyfunc",
    # experiments and sweeps
    "pnfrec_dist.experiments.logged_result": "integration/test_tracking.py",
    "pnfrec_dist.experiments.reproduction_plan": "experiments/test_reproduction.py",
    "pnfrec_dist.experiments.plots": "experiments/test_reproduction.py > pnfrec_dist.experiments.report",
    "pnfrec_dist.experiments.report": "experiments/test_reproduction.py",
    "pnfrec_dist.experiments.comparison": "experiments/test_reproduction.py",
    "tune.report": "integration/test_tune.py > tune.__main__ > tune.sweep",
    "tune.search": "tune/test_space.py",
    "tune.trial": "integration/test_tune.py > tune.__main__ > tune.sweep",
    # preparation
    "spark_jobs.raw_files": "spark_jobs/test_sources.py",
    "spark_jobs.text_rows": "spark_jobs/test_sources.py",
    "spark_jobs.parquet_rows": "spark_jobs/test_sources.py > spark_jobs.sources",
    "spark_jobs.file_hints": "integration/test_log_files.py > spark_jobs.raw_files",
