"""The pages of a reproduction in MLflow, opened in a real browser: Debian's Chromium, without a window.

SCREENSHOTS=<directory> keeps a picture of each page.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.commands import ENVIRONMENT
from helpers.mlflow_server import free_port, is_up, mlflow_server
from helpers.waiting import wait_until
from mlflow import MlflowClient
from playwright.sync_api import Error, Page, expect, sync_playwright

pytestmark = [pytest.mark.integration, pytest.mark.slow]

FLAGS = ["--epochs", "4", "--encoder.hidden-size", "8", "--encoder.max-length", "5", "--train.batch-size", "8"]
NAMES = [f"{model} tiny epochs=4 d=8 l=5 batch=8 seed 1" for model in ("pnfrec", "sasrec_p")]
PATIENCE = 60_000
"""Milliseconds that a page may take to show its content."""


def chromium() -> str:
    """Path of Chromium. Installs it if possible; otherwise skips the test with the reason."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if not any(map(shutil.which, names)):
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            pytest.skip("no Chromium, and only root on Debian can install it here: apt-get install chromium")
        line = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False)
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no Chromium, and apt-get could not install it: {done.stderr.strip()[-200:]}")
    return next(path for name in names if (path := shutil.which(name)))


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> Path:
    directory = tmp_path_factory.mktemp("browser")
    prepared_writer(directory / "data" / "prepared" / "tiny")
    models = ["--models", "sasrec_p", "pnfrec", "--seeds", "1", "--num-workers", "1"]
    line = [sys.executable, "-m", "pnfrec_dist.reproduce", "--dataset", "tiny", *models, *FLAGS]
    done = subprocess.run(line, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="module")
def address(workspace: Path) -> Iterator[str]:
    """MLflow's page, served as `make mlflow-ui` does."""
    with mlflow_server(workspace) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def ids(workspace: Path) -> dict[str, str]:
    """Run name -> id, and the experiment's."""
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pnfrec-dist")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return {str(run.info.run_name): run.info.run_id for run in runs} | {"experiment": experiment.experiment_id}


def visit(page: Page, address: str, path: str) -> None:
    page.goto("about:blank")
    mark = "&" if "?" in path else "?"
    page.goto(f"{address}/#/{path}{mark}workflowType=machine_learning")
    with contextlib.suppress(Error):  # a panel that covers a quarter of the page on the first visit
        page.get_by_label("close assistant").or_(page.get_by_label("Close")).first.click(timeout=3000)


def keep(page: Page, name: str) -> None:
    if directory := os.environ.get("SCREENSHOTS"):
        page.wait_for_timeout(2000)
        page.screenshot(path=str(Path(directory) / f"{name}.png"))


def test_the_list_shows_the_reproduction_and_its_trainings(page: Page, address: str, ids: dict[str, str]) -> None:
    visit(page, address, f"experiments/{ids['experiment']}/runs")
    expect(page.get_by_text("reproduce tiny", exact=True).first).to_be_visible()
    page.locator(".ag-row").first.get_by_role("button").first.click()
    for name in NAMES:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    keep(page, "list")


def test_the_printed_page_has_the_headline_metrics_as_columns(page: Page, workspace: Path) -> None:
    """The address that `make mlflow-ui` prints."""
    port = free_port()
    command = [sys.executable, "-m", "pnfrec_dist.tracking", "ui", "--port", str(port)]
    with subprocess.Popen(command, cwd=workspace, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            link = server.stdout.readline().split()[0]
            wait_until(lambda: is_up(port), unless=lambda: server.poll() is not None)
            page.set_viewport_size({"width": 2000, "height": 950})  # columns outside of it are not rendered
            page.goto(link)
            for name in ("test/ndcg_p_at_10", "test/ndcg_delta_at_10", "test/hr_p_at_10", "test/hr_delta_at_10"):
                expect(page.get_by_role("columnheader", name=name).first).to_be_visible()
            keep(page, "columns")
        finally:
            server.terminate()


def test_a_run_has_its_table_curves_and_model(page: Page, address: str, ids: dict[str, str]) -> None:
    run = f"experiments/{ids['experiment']}/runs/{ids[NAMES[0]]}"
    visit(page, address, run)
    expect(page.get_by_role("heading", name=NAMES[0])).to_be_visible()
    expect(page.get_by_text("the best on validation").first).to_be_visible()
    expect(page.get_by_role("cell", name="popularity_positive").first).to_be_attached()
    expect(page.get_by_role("link", name="reproduce tiny").first).to_be_visible()
    expect(page.get_by_text("pnfrec-tiny").first).to_be_visible()
    keep(page, "run")
    visit(page, address, f"{run}/artifacts/result/learning_curves.png")
    picture = page.locator("img[src*='learning_curves'], img[src^='blob:']").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 400
    keep(page, "plot")
    visit(page, address, f"{run}/model-metrics")
    page.get_by_placeholder("Search metric charts").fill("train/loss|val/ndcg_p_at_10")
    expect(page.get_by_text("ndcg_p_at_10").locator("visible=true").first).to_be_visible()
    expect(page.locator("svg.main-svg").locator("visible=true").first).to_be_visible()
    keep(page, "metrics")
    visit(page, address, f"{run}/system-metrics")
    expect(page.get_by_text("cpu_utilization_percentage").locator("visible=true").first).to_be_visible()


def test_the_parent_shows_the_report(page: Page, address: str, ids: dict[str, str]) -> None:
    parent = f"experiments/{ids['experiment']}/runs/{ids['reproduce tiny']}"
    visit(page, address, parent)
    expect(page.get_by_text("Mean ± SD over 1 seed").first).to_be_attached()
    keep(page, "parent")
    visit(page, address, f"{parent}/artifacts/report/report.html")
    report = page.frame_locator("iframe").first
    expect(report.get_by_role("heading", name="Test users")).to_be_visible()
    assert report.locator("img").first.evaluate("image => image.naturalWidth") > 400
    keep(page, "report")


def test_two_runs_are_compared(page: Page, address: str, ids: dict[str, str]) -> None:
    runs = json.dumps([ids[name] for name in NAMES])
    visit(page, address, f'compare-runs?runs={runs}&experiments=["{ids["experiment"]}"]')
    expect(page.get_by_text("Comparing 2 Runs from 1 Experiment").first).to_be_visible()
    expect(page.get_by_text(NAMES[1]).first).to_be_visible()
    expect(page.get_by_text("loss.alpha").first).to_be_visible()
    keep(page, "compare")


def test_the_registered_model_has_its_best_version(page: Page, address: str) -> None:
    visit(page, address, "models/pnfrec-dist-tiny")
    expect(page.get_by_text("Models of").first).to_be_visible()
    expect(page.get_by_text("best", exact=True).first).to_be_visible()
    keep(page, "model")
