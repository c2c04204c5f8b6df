"""Models in MLflow: which one a reference means, and where its files are."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pnfrec_dist.errors import InputError, first_line, nearest
from pnfrec_dist.tracking.address import shown
from pnfrec_dist.tracking.logged_models import models_of, registered_version, run_of_key

BEST = "best"
"""The alias that reproduce sets; see Sender._register."""
NO_SUCH = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def model_location(reference: str, uri: str) -> str:
    """Where the files of a logged model are, as a URI.

    reference: a run's id or runs:/<id>, models:/<name>/<version>, models:/<name>@<alias>, models:/<model id> or the
    name of a registered model (its best version, else its newest). uri: MLflow's.
    Raises InputError if MLflow does not have the model or does not answer.
    """
    with answered(reference, uri) as client:
        if run := re.fullmatch(r"(?:runs:/)?([0-9a-f]{32})(?:/model)?", reference):
            return _of_run(client, run[1], uri).artifact_location
        if model := re.fullmatch(r"models:/(m-[0-9a-f]{32})", reference):
            return client.get_logged_model(model[1]).artifact_location
        named = re.fullmatch(r"(?:models:/)?([^/:@]+)(?:/(\d+)|@([^/:@]+))?", reference)
        if named is None:
            raise InputError(f"{reference!r} names no model; write models:/<name>/<version> or models:/<name>@<alias>")
        name, version, alias = named.groups()
        return client.get_model_version_download_uri(name, version or _version(client, name, alias, uri))


def registered_name(reference: str, uri: str) -> str:
    """models:/<name>/<version> of the version that a registered model's name, or its alias, means now.

    Raises InputError as model_location does.
    """
    with answered(reference, uri) as client:
        named = re.fullmatch(r"(?:models:/)?([^/:@]+)(?:@([^/:@]+))?", reference)
        if named is None or re.fullmatch(r"[0-9a-f]{32}|m-[0-9a-f]{32}", named[1]):
            return reference
        return f"models:/{named[1]}/{_version(client, named[1], named[2], uri)}"


def download(location: str, into: Path, uri: str) -> Path:
    """Copies the files at `location` to below `into`, and returns their path."""
    with answered(location, uri):
        return Path(download_artifacts(location, dst_path=str(into), tracking_uri=uri))


def _of_run(client: MlflowClient, run_id: str, uri: str) -> LoggedModel:
    """The newest model of a run. A finished run that was trained for longer has several."""
    found = models_of(client, client.get_run(run_id).info.experiment_id, run_id)
    if not found:
        raise InputError(f"run {run_id} in MLflow at {shown(uri)} has no model; name a run that was trained to its end")
    return found[0]


def version_of_model(client: MlflowClient, name: str, reference: str, tags: dict[str, str], uri: str) -> ModelVersion:
    """The version of the registered model `name` that is the model of a run, or of another registered model.

    reference: a run's id, or models:/<other name>/<version>; a new version gets these tags. Raises InputError if it is
    neither.
    """
    if re.fullmatch(r"[0-9a-f]{32}", reference):
        found = models_of(client, client.get_run(reference).info.experiment_id, reference)
        if not found:
            raise InputError(
                f"run {reference} in MLflow at {shown(uri)} has no model; name a run that was trained to its end"
            )
        return registered_version(client, name, found[0], tags, "")
    named = re.fullmatch(r"models:/([^/:@]+)/(\d+)", reference)
    if named is None:
        raise InputError(f"--run {reference}: name a run's directory, an MLflow run id, or models:/<name>/<version>")
    version = client.get_model_version(*named.groups())
    if version.name == name:
        return version
    if version.model_id is None:
        raise InputError(f"{reference} in MLflow at {shown(uri)} is no logged model; name the run that trained it")
    return registered_version(client, name, client.get_logged_model(version.model_id), tags, "")


def id_of_run(experiment: str, key: str, uri: str) -> str:
    """MLflow's id of a run of this project. Raises InputError if MLflow does not have it."""
    with answered(experiment, uri) as client:
        found = client.get_experiment_by_name(experiment)
        run_id = run_of_key(client, found.experiment_id, key) if found is not None else ""
        if not run_id:
            raise InputError(
                f"MLflow at {shown(uri)} does not have the run yet; send it: python -m pnfrec_dist.tracking flush"
            )
        return run_id


def _version(client: MlflowClient, name: str, alias: str | None, uri: str) -> str:
    """The version with this alias; without one, the best, else the newest."""
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = [model.name for model in client.search_registered_models()]
        which = nearest(name, known) if known else "there are no registered models"
        raise InputError(f"no model {name!r} is registered in MLflow at {shown(uri)}; {which}") from error
    if alias is not None and alias not in aliases:
        has = nearest(alias, aliases) if aliases else "it has no alias"
        raise InputError(f"model {name!r} has no alias {alias!r} in MLflow at {shown(uri)}; {has}")
    if (alias or BEST) in aliases:
        return aliases[alias or BEST]
    versions = client.search_model_versions(f"name = '{name}'")
    if not versions:
        raise InputError(f"model {name!r} in MLflow at {shown(uri)} has no version; name another one")
    return str(max(int(version.version) for version in versions))


@contextmanager
def answered(what: str, uri: str) -> Iterator[MlflowClient]:
    """A client for questions about `what`; its errors become one-line InputErrors. A missing database is an error, too:
    MLflow would create it."""
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise InputError(f"cannot look for {what!r}: there is no MLflow database at {uri}; set MLFLOW_TRACKING_URI")
    try:
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (MlflowException, OSError) as error:
        reason = first_line(error).replace(uri, shown(uri))
        code = getattr(error, "error_code", "")
        what_now = "name another one" if code in NO_SUCH else "check MLFLOW_TRACKING_URI"
        raise InputError(f"MLflow at {shown(uri)} gives no model {what!r} ({reason}); {what_now}") from error
