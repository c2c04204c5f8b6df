"""MLflow's address, and its form without secrets."""

from pathlib import Path

import pytest

from pnfrec_dist.errors import InputError
from pnfrec_dist.tracking.address import shown, tracking_uri


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("postgres://me:s3cr3t@host/db", "htp://me:s3cr3t@host", "http://[me:s3cr3t@host", "s3cr3t://"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", wrong.replace("s3cr3t://", "ftp://x?password=s3cr3t"))
        with pytest.raises(InputError) as caught:
            tracking_uri()
        assert "s3cr3t" not in str(caught.value)
    assert shown("https://me:secret@host:5000/x") == "https://host:5000/x"
    assert shown("postgresql://me:s@c@host/db") == "postgresql://host/db"
    assert shown("sqlite:////a/b@c.db") == "sqlite:////a/b@c.db"


def test_without_an_address_it_is_a_database_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://host/db")
    assert tracking_uri() == "postgresql+psycopg2://host/db"
