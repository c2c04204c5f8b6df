"""The command python -m pnfrec_dist.tracking: shows MLflow's pages, or sends records that MLflow does not have yet."""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mlflow.exceptions import MlflowException

from pnfrec_dist.cli import HOST, Parser, command, require_free, run_command
from pnfrec_dist.errors import InputError, first_line
from pnfrec_dist.tracking.address import shown, tracking_uri
from pnfrec_dist.tracking.run_list import run_list_page
from pnfrec_dist.tracking.sender import NotYetError, Sender
from pnfrec_dist.tracking.spool import RECORDS, Spool, locked


def main(args: Sequence[str]) -> int:
    """Runs one of the two commands. Raises InputError if MLflow does not answer or refuses."""
    parser = Parser(
        prog=command("tracking"),
        description="Show MLflow's pages, or send records that MLflow does not have yet.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pages = commands.add_parser("ui", help="show the runs of this machine in a browser (MLflow's pages)")
    pages.add_argument("--port", type=int, default=5000, help="port on 127.0.0.1; default: 5000")
    flush = commands.add_parser("flush", help="send the records of runs that MLflow does not have yet")
    flush.add_argument("runs", nargs="*", type=Path, help="directories of runs; default: all in --output-dir")
    flush.add_argument("--output-dir", type=Path, default=Path("runs"), help="directory of the runs; default: runs")
    arguments = parser.parse_args(args)
    if arguments.command == "ui":
        _show_pages(arguments.port)
    return _flush_all(arguments.runs, arguments.output_dir)


def _show_pages(port: int) -> NoReturn:
    """Replaces this process with MLflow's server. Prints the address of the runs of the newest experiment."""
    importlib.import_module("flask")  # it comes with MLflow's full package, which the server needs
    uri = tracking_uri()
    if uri.startswith(("http", "databricks")):
        raise InputError(f"MLFLOW_TRACKING_URI is {shown(uri)!r}, a server with its own pages; open that address")
    require_free(port)
    print(f"http://{HOST}:{port}/{run_list_page(uri)}  (Ctrl-C ends it)", flush=True)
    where = ["--host", HOST, "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", uri, "--default-artifact-root", Path("mlartifacts").resolve().as_uri()]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "server", *where, *stores], os.environ | quiet)


def _flush_all(runs: list[Path], output_dir: Path) -> int:
    """Sends the records that runs could not send. Raises InputError if MLflow does not take them."""
    found = [file.parent for file in output_dir.rglob(RECORDS)]
    directories = runs or sorted(found, key=lambda path: (len(path.parts), path))  # parents come first
    uri = tracking_uri()
    problems: dict[Path, str] = {}
    found_any = bool(directories)
    for _ in range(2):  # twice: a reproduction's own records come before and after those of its trainings
        for directory in directories:
            problems[directory] = _flush(directory, uri)
        directories = [directory for directory, problem in problems.items() if problem]
    if directories:
        raise InputError("; ".join(problems[directory] for directory in directories))
    if not found_any:
        print(f"no records in {output_dir}")
    return 0


def _flush(directory: Path, uri: str) -> str:
    """Sends the records of one run. Returns what is wrong with the run, or "". Raises InputError if MLflow fails."""
    if not (directory / RECORDS).is_file():
        return f"{directory} has no {RECORDS}; name the directory of a run"
    try:
        key = json.loads((directory / "run.json").read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError):
        return f"{directory} has no readable run.json; fix it, or remove the directory"
    with locked(directory, wait=False) as is_ours:
        if not is_ours:
            print(f"{directory}: skipped; the command that trains it sends its records")
            return ""
        spool = Spool(directory)
        before, sender = spool.unsent, Sender(spool, key, uri)
        try:
            while spool.unsent:
                sender.send_next()
        except (InputError, NotYetError) as error:
            return f"{directory}: {error}"
        except (MlflowException, OSError) as error:
            reason = first_line(error).replace(uri, shown(uri))
            raise InputError(
                f"{directory}: {spool.unsent} records are not sent; MLflow at {shown(uri)}: {reason}; check "
                "MLFLOW_TRACKING_URI, and try again when MLflow answers"
            ) from error
    print(f"{directory}: {before} records sent" if before else f"{directory}: all records were sent before")
    for missing in sender.missing:
        print(f"warning: {missing} is gone and was not sent")
    return ""


if __name__ == "__main__":
    run_command(main)
