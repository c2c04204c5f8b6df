"""serve --replicas, as users start it: a moved alias and a killed replica under load, metrics, a token."""

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import mlflow.pyfunc
import psutil
import pytest
from helpers.commands import ENVIRONMENT
from helpers.mlflow_server import free_port
from helpers.tracked import tracked_run
from helpers.waiting import wait_until
from mlflow import MlflowClient

from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.files.locations import Location
from pnfrec_dist.tracking.model_registry import version_of_model

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]
NAME, TOKEN = "tiny", "a-secret"
CLIENTS = 8
QUERY = json.dumps({"inputs": [{"liked": ["1", "2"], "disliked": ["5"], "top_k": 4}]})


@dataclass
class Server:
    """A server of the model `tiny`, whose alias champion is version 1 at first."""

    port: int
    process: subprocess.Popen[str]
    uri: str
    runs: list[Path]

    def ask(self, path: str = "/invocations", body: str = QUERY, token: str = TOKEN) -> tuple[int, str, str]:
        """(status, content, model) of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request("POST" if path == "/invocations" else "GET", path, body, headers)
        answer = connection.getresponse()
        content = answer.read().decode()
        connection.close()
        return answer.status, content, answer.headers.get("pnfrec-model", "")

    def replicas(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        found = []
        for child in children:
            with contextlib.suppress(psutil.Error):
                if "ServeReplica" in child.cmdline()[0]:
                    found.append(child)
        return found

    def running(self) -> dict[str, int]:
        """Model -> replicas, as the metrics say."""
        text = self.ask("/metrics")[1]
        return {m: int(float(n)) for m, n in re.findall(r'pnfrec_replicas\{model="(.*?)"\} (\S+)', text)}


@dataclass
class Load:
    """What clients have seen that ask without a pause."""

    models: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    failed_again: list[str] = field(default_factory=list)
    """failures of the one further try"""


@contextlib.contextmanager
def load_on(server: Server) -> Iterator[Load]:
    found, stop = Load(), threading.Event()

    def once() -> str:
        status, content, model = server.ask()
        assert status == 200, f"{status} {content}"
        return model

    def client() -> None:
        while not stop.is_set():
            try:
                found.models.append(once())
            except (OSError, http.client.HTTPException, AssertionError) as error:
                found.failed.append(str(error))
                try:
                    once()
                except (OSError, http.client.HTTPException, AssertionError) as again:
                    found.failed_again.append(str(again))

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    try:
        yield found
    finally:
        stop.set()
        for thread in clients:
            thread.join()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    prepared_writer: Callable[..., Path],
    empty_mlflow: Callable[[Path], str],
) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("replicas")
    data = open_prepared(Location(prepared_writer(place / "data" / "prepared" / "tiny")))
    uri = empty_mlflow(place)
    runs = [tracked_run(place / "runs", data, uri, seed) for seed in (1, 2)]
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("pnfrec-dist")
    assert experiment is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)  # MLflow looks models up there, whatever the client's address
        for found in client.search_runs([experiment.experiment_id]):
            version_of_model(client, NAME, found.info.run_id, {}, uri)
    client.set_registered_model_alias(NAME, "champion", "1")
    (place / "token").write_text(f"{TOKEN}\n")
    port = free_port()
    line = [sys.executable, "-m", "pnfrec_dist.serve", "--run", f"models:/{NAME}@champion", "--port", str(port)]
    line += ["--replicas", "2", "--token-file", "token", "--refresh-seconds", "1"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=place, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        lines = list[str]()
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        yield Server(port, process, uri, runs)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not [p for p in psutil.process_iter(["cmdline"]) if f"--port {port}" in " ".join(p.info["cmdline"] or [])]


def test_answers_are_those_of_the_model_and_need_the_token(server: Server) -> None:
    status, content, model = server.ask()
    assert (status, model) == (200, f"models:/{NAME}/1")
    client = MlflowClient(tracking_uri=server.uri, registry_uri=server.uri)
    where = client.get_model_version_download_uri(NAME, "1")
    expected = [answer.model_dump() for answer in mlflow.pyfunc.load_model(where).predict(json.loads(QUERY)["inputs"])]
    found = json.loads(content)["predictions"]
    assert [one["items"] for one in found] == [one["items"] for one in expected]
    assert found[0]["scores"] == pytest.approx(expected[0]["scores"], rel=1e-5)
    assert [server.ask(path, token=token)[0] for path, token in (("/invocations", ""), ("/invocations", "other"))] == [
        401
    ] * 2
    assert server.ask("/ping", token="")[0] == 200 and server.ask("/metrics", token="")[0] == 401


def test_it_listens_on_loopback_only(server: Server) -> None:
    family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    listening = set()
    for process in family:
        with contextlib.suppress(psutil.Error):
            listening |= {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}, listening


def test_a_moved_alias_is_taken_up_without_a_failed_request(server: Server) -> None:
    client = MlflowClient(tracking_uri=server.uri, registry_uri=server.uri)
    for version in ("2", "1", "2"):
        with load_on(server) as seen:
            wait_until(lambda seen=seen: len(seen.models) > 2 * CLIENTS)
            client.set_registered_model_alias(NAME, "champion", version)
            wait_until(lambda version=version: server.running() == {f"models:/{NAME}/{version}": 2})
            time.sleep(0.5)
        assert seen.failed == [] and set(seen.models) == {f"models:/{NAME}/1", f"models:/{NAME}/2"}
        assert seen.models[-1] == f"models:/{NAME}/{version}"


def test_an_alias_of_a_model_that_cannot_be_opened_changes_nothing(server: Server) -> None:
    client = MlflowClient(tracking_uri=server.uri, registry_uri=server.uri)
    before = server.running()
    client.delete_registered_model_alias(NAME, "champion")
    time.sleep(4)
    assert server.running() == before and server.ask()[0] == 200
    client.set_registered_model_alias(NAME, "champion", "2")


def test_a_killed_replica_costs_its_own_requests_alone(server: Server) -> None:
    """Each client has one request at a time, so at most CLIENTS are at the replica. A further try has an answer."""
    assert len(server.replicas()) == 2
    killed = server.replicas()[0]
    with load_on(server) as seen:
        wait_until(lambda: len(seen.models) > 2 * CLIENTS)
        killed.kill()
        killed.wait(30)
        answered = len(seen.models)
        wait_until(lambda: len(seen.models) > answered + 20 * CLIENTS)
        wait_until(lambda: sum(server.running().values()) == 2 and len(server.replicas()) == 2)
    assert len(seen.failed) <= CLIENTS and seen.failed_again == []


def test_metrics_count_every_answer(server: Server) -> None:
    def counted() -> float:
        return float(re.findall(r'pnfrec_requests_total\{status="200"\} (\S+)', server.ask("/metrics")[1])[0])

    time.sleep(3)  # each replica adds its counts once a second
    before = counted()
    for _ in range(10):
        server.ask()
    wait_until(lambda: counted() == before + 10)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--replicas 0", "--replicas is 0; it must be >= 1"),
        ("--host 0.0.0.0", "--host is '0.0.0.0'; it needs --replicas"),
        ("--replicas 1 --host 0.0.0.0", "--host is '0.0.0.0', which other machines reach; give --token-file"),
        ("--replicas 1 --token-file none", "--token-file is 'none', and there is no such file"),
        ("--replicas 1 --refresh-seconds 0", "--refresh-seconds is 0; it must be > 0"),
        ("--replicas 1", "there is no directory 'runs/none'"),
    ],
)
def test_wrong_input_is_told(tmp_path: Path, flags: str, told: str) -> None:
    line: list[str] = [sys.executable, "-m", "pnfrec_dist.serve", "--run", "runs/none", "--port", str(free_port())]
    done = subprocess.run(
        [*line, *flags.split()], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
