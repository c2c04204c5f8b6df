"""The champion of a registered model: its version with the alias champion, which one it replaced, and the moves."""

from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pnfrec_dist.errors import InputError
from pnfrec_dist.tracking.address import shown
from pnfrec_dist.tracking.model_registry import answered, version_of_model

CHAMPION = "champion"
REPLACED, REPLACED_BY, PROMOTED, ROLLED_BACK = "replaced", "replaced_by", "promoted_at", "rolled_back_at"
"""Tags of versions."""


class Champion:
    """The champion of the registered model `name`, in MLflow at `uri`."""

    def __init__(self, name: str, uri: str) -> None:
        self.name, self.uri = name, uri

    def version(self) -> ModelVersion | None:
        """None if the model is not registered, or has no champion. Raises InputError if MLflow does not answer."""
        with answered(self.name, self.uri) as client:
            return self._holder(client)

    def register(self, reference: str, tags: dict[str, str]) -> ModelVersion:
        """The version of the model with this name: an existing one, or a new one with these tags.

        reference: an MLflow run id, or models:/<name>/<version>. Raises InputError if it names no logged model.
        """
        with answered(reference, self.uri) as client:
            return version_of_model(client, self.name, reference, tags, self.uri)

    def promote(self, version: str, facts: dict[str, str]) -> None:
        """Gives the alias to a version. Tags say what it replaced, and the facts of the comparison."""
        with answered(self.name, self.uri) as client:
            before = self._holder(client)
            replaced = str(before.version) if before is not None else ""
            self._tag(client, version, facts | {REPLACED: replaced, PROMOTED: _now()})
            client.set_registered_model_alias(self.name, CHAMPION, version)
            if replaced:
                self._tag(client, replaced, {REPLACED_BY: version})

    def rollback(self) -> tuple[str, str]:
        """Gives the alias back to the version that the champion replaced: (that version, the champion until now).

        Raises InputError if there is no champion, or it replaced none.
        """
        with answered(self.name, self.uri) as client:
            now = self._holder(client)
            if now is None:
                raise InputError(f"model {self.name!r} in MLflow at {shown(self.uri)} has no champion; promote one")
            before = now.tags.get(REPLACED, "")
            if not before:
                raise InputError(f"version {now.version} of {self.name!r} replaced no other; name another --name")
            client.set_registered_model_alias(self.name, CHAMPION, before)
            self._tag(client, str(now.version), {ROLLED_BACK: _now()})
            return before, str(now.version)

    def _holder(self, client: MlflowClient) -> ModelVersion | None:
        try:
            return client.get_model_version_by_alias(self.name, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def _tag(self, client: MlflowClient, version: str, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            client.set_model_version_tag(self.name, version, key, value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
