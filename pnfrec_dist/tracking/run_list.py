"""The list of runs in MLflow's pages: which columns it shows, and its address."""

import json

from mlflow import MlflowClient
from mlflow.entities import Experiment

from pnfrec_dist.evaluation.metrics import HEADLINE_METRICS

VIEW = "pnfrec"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
"""Tag of an experiment in which MLflow's pages store a view that was shared by a link."""


def run_list_page(uri: str) -> str:
    """The page of the experiment with the newest run, with the headline metrics of the test as columns.

    A path below the server's address. It is the list of experiments if there is no run yet.
    """
    client = MlflowClient(tracking_uri=uri)
    experiments = {found.experiment_id: found for found in client.search_experiments()}
    newest = client.search_runs(list(experiments), max_results=1, order_by=["attributes.start_time DESC"])
    if not newest:
        return "#/experiments?workflowType=machine_learning"
    experiment = experiments[newest[0].info.experiment_id]
    _share_view(client, experiment)
    page = f"#/experiments/{experiment.experiment_id}/runs"
    return f"{page}?viewStateShareKey={VIEW}&workflowType=machine_learning"


def _share_view(client: MlflowClient, experiment: Experiment) -> None:
    view = json.dumps({"selectedColumns": [f"metrics.`test/{name}`" for name in HEADLINE_METRICS]})
    if experiment.tags.get(VIEW_TAG) != view:
        client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, view)
