"""The page that `make mlflow-ui` prints; tests/integration/test_mlflow_pages.py opens it in a browser."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pnfrec_dist.errors import InputError
from pnfrec_dist.tracking.__main__ import main
from pnfrec_dist.tracking.run_list import VIEW_TAG, run_list_page


def test_it_is_the_experiment_of_the_newest_run_with_the_headline_metrics(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    assert run_list_page(uri) == "#/experiments?workflowType=machine_learning"
    older, newer = (client.create_experiment(name) for name in ("older", "newer"))
    for start, experiment in ((1000, newer), (2000, older), (3000, newer)):
        client.create_run(experiment, start_time=start)
    for _ in range(2):
        assert run_list_page(uri).startswith(f"#/experiments/{newer}/runs?viewStateShareKey=")
    view = json.loads(client.get_experiment(newer).tags[VIEW_TAG])
    assert "metrics.`test/ndcg_delta_at_10`" in view["selectedColumns"]
    assert VIEW_TAG not in client.get_experiment(older).tags


def test_a_server_has_its_own_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="a server with its own pages; open that address"):
        main(["ui"])
