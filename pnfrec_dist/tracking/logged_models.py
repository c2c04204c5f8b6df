"""Models that runs have logged to MLflow, and their versions as registered models."""

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

KEY_TAG = "pnfrec.run"
"""Tag by which a run is found again, even if MLflow's answer to its creation was lost."""


def run_of_key(client: MlflowClient, experiment: str, key: str) -> str:
    """MLflow's id of the run with this KEY_TAG, or ""."""
    runs = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return runs[0].info.run_id if runs else ""


def models_of(client: MlflowClient, experiment: str, run_id: str) -> list[LoggedModel]:
    """The models of a run, newest first."""
    order = [{"field_name": "creation_timestamp", "ascending": False}]
    return client.search_logged_models([experiment], f"source_run_id = '{run_id}'", order_by=order).to_list()


def registered_version(
    client: MlflowClient, name: str, model: LoggedModel, tags: dict[str, str], description: str
) -> ModelVersion:
    """The version of the registered model `name` that is this logged model; made, with these tags, if there is none."""
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    run_id, source = model.source_run_id, f"models:/{model.model_id}"
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    found = [version for version in versions if version.source == source]
    return found[0] if found else client.create_model_version(name, source, run_id, tags, model_id=model.model_id)
