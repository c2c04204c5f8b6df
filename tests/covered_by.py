"""The modules without a test file of their name, and the file in tests/ whose tests run them.

A module of a room has tests/<room>/test_<module>.py, a command tests/test_<module>.py; what is neither stands here.
"""

COVERED_BY = {
    # commands
    "pnfrec_dist.train": "integration/test_train.py",
    "pnfrec_dist.evaluate": "inference/test_batch_job.py",
    "pnfrec_dist.recommend": "integration/test_recommend.py",
    "pnfrec_dist.serve": "integration/test_serve.py",
    "pnfrec_dist.export": "inference/test_export.py",
    "pnfrec_dist.reproduce": "integration/test_reproduce.py",
    "tune.__main__": "integration/test_tune.py",
    "spark_jobs.__main__": "integration/test_prepare.py",
    "spark_jobs.prepare": "integration/test_prepare.py",
    # the top and what all share
    "pnfrec_dist.cli": "config/test_settings.py",
    "pnfrec_dist.errors": "config/test_settings.py",
    "pnfrec_dist.distributed": "training/test_loop_ranks.py",
    "pnfrec_dist.files.locations": "data/test_schema.py",
    "pnfrec_dist.config.dataset_settings": "config/test_settings.py",
    "pnfrec_dist.config.inference_settings": "inference/test_batch_job.py",
    "pnfrec_dist.config.mappings": "config/test_settings.py",
    "pnfrec_dist.data.batches": "data/test_collate.py",
    "pnfrec_dist.data.prepared": "data/test_schema.py",
    "pnfrec_dist.data.user_histories": "inference/test_list_maker.py",
    "pnfrec_dist.model.item_table": "model/test_top_k.py",
    "pnfrec_dist.model.standalone_encoder": "inference/test_export.py",
    "pnfrec_dist.training.events": "training/test_loop.py",
    "pnfrec_dist.training.result": "experiments/test_reproduction.py",
    # Ray and MLflow
    "pnfrec_dist.cluster.environment": "integration/test_train.py",
    "pnfrec_dist.cluster.trainer": "integration/test_train.py",
    "pnfrec_dist.cluster.worker": "integration/test_train.py",
    "pnfrec_dist.tracking.model_registry": "integration/test_model_references.py",
    "pnfrec_dist.tracking.run": "integration/test_tracking.py",
    "pnfrec_dist.tracking.sender": "integration/test_tracking.py",
    "pnfrec_dist.tracking.system_metrics": "integration/test_reproduce.py",
    # inference
    "pnfrec_dist.inference.artifact": "inference/test_export.py",
    "pnfrec_dist.inference.cards": "inference/test_list_maker.py",
    "pnfrec_dist.inference.filters": "inference/test_batch_job.py",
    "pnfrec_dist.inference.gamma": "inference/test_batch_job.py",
    "pnfrec_dist.inference.pyfunc_script": "inference/test_pyfunc.py",
    # experiments and sweeps
    "pnfrec_dist.experiments.outcome": "integration/test_tracking.py",
    "pnfrec_dist.experiments.plan": "experiments/test_reproduction.py",
    "pnfrec_dist.experiments.plots": "experiments/test_reproduction.py",
    "pnfrec_dist.experiments.report": "experiments/test_reproduction.py",
    "pnfrec_dist.experiments.results": "experiments/test_reproduction.py",
    "tune.options": "tune/test_sweep.py",
    "tune.records": "tune/test_space.py",
    "tune.report": "integration/test_tune.py",
    "tune.search": "tune/test_space.py",
    "tune.trial": "integration/test_tune.py",
    "tune.watch": "integration/test_tune.py",
    # preparation
    "spark_jobs.build": "integration/test_prepare_protocol.py",
    "spark_jobs.fetch": "spark_jobs/test_sources.py",
    "spark_jobs.package": "integration/test_prepare_faults.py",
    "spark_jobs.report": "integration/test_prepare.py",
    "spark_jobs.synthetic": "spark_jobs/test_sources.py",
    "spark_jobs.transforms": "spark_jobs/test_protocol.py",
}
