"""MLflow's address: MLFLOW_TRACKING_URI, checked, and its form without secrets for messages."""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from pnfrec_dist.errors import InputError

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else sqlite:///<current directory>/mlflow.db. Raises InputError if it cannot work."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    uri = given or f"sqlite:///{Path('mlflow.db').resolve()}"
    way_out = "correct it, or unset MLFLOW_TRACKING_URI to log to sqlite:///mlflow.db"
    try:
        scheme = urlsplit(uri).scheme.partition("+")[0]
    except ValueError as error:
        raise InputError(f"MLFLOW_TRACKING_URI is {shown(uri)!r} ({error}); {way_out}") from error
    if uri == "databricks":
        return uri
    if scheme not in SCHEMES:
        must = f"it must start with one of {', '.join(SCHEMES)}"
        raise InputError(f"MLFLOW_TRACKING_URI is {shown(uri)!r}; {must}; {way_out}")
    if scheme == "sqlite":
        if not uri.startswith("sqlite:///") or uri == "sqlite:///":
            raise InputError(f"MLFLOW_TRACKING_URI is {uri!r}; it must be sqlite:///<path>; {way_out}")
        file = Path(uri.removeprefix("sqlite:///")).resolve()
        if file.is_dir() or not file.parent.is_dir():
            wrong = f"{file} is a directory" if file.is_dir() else f"{file.parent} is not a directory"
            raise InputError(f"MLFLOW_TRACKING_URI is {uri!r}, but {wrong}; {way_out}")
    return uri


def shown(uri: str) -> str:
    """The address without user name, password and token, even if it is malformed."""
    if uri.startswith("sqlite:"):
        return uri
    return re.sub(r"(password|token)=[^&]*", r"\1=***", re.sub(r"//.*@", "//", uri))
