"""The files in docs/operate/: the shell script says how it is used, and the DAG, parsed without Airflow, runs it."""

import ast
import re
import subprocess
from pathlib import Path

from pnfrec_dist.__main__ import COMMANDS

OPERATE = Path(__file__).parents[2] / "docs" / "operate"


def test_the_script_parses_and_says_how_it_is_used() -> None:
    script = OPERATE / "nightly.sh"
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    done = subprocess.run(["sh", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage" in done.stderr
    called = set(re.findall(r"\$pnfrec (\w+)", script.read_text()))
    assert called == {"prep", "train", "promote"} and called <= COMMANDS.keys()


def test_the_dag_parses_and_runs_the_script_once_at_a_time() -> None:
    tree = ast.parse((OPERATE / "nightly_dag.py").read_text())
    calls = {n.func.id: n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    dag, task = (
        {k.arg: ast.literal_eval(k.value) for k in calls[name].keywords if isinstance(k.value, ast.Constant)}
        for name in ("DAG", "BashOperator")
    )
    assert dag["max_active_runs"] == 1 and dag["catchup"] is False
    assert task["bash_command"].startswith("sh docs/operate/nightly.sh ") and task["skip_on_exit_code"] == 1
