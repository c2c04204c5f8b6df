"""The command python -m pnfrec_dist.tracking flush: sends to MLflow what runs could not send while they went."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mlflow.exceptions import MlflowException

from pnfrec_dist.cli import run_command
from pnfrec_dist.errors import InputError
from pnfrec_dist.tracking.address import shown, tracking_uri
from pnfrec_dist.tracking.sender import NotYetError, Sender
from pnfrec_dist.tracking.spool import RECORDS, Spool, locked


def main(args: Sequence[str]) -> int:
    """Sends the records that runs could not send. Raises InputError where MLflow does not take them."""
    parser = argparse.ArgumentParser(
        prog="python -m pnfrec_dist.tracking", description="Sends to MLflow what runs could not send while they went."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    flush = commands.add_parser("flush", help="send the records that wait in the directories of runs")
    flush.add_argument("runs", nargs="*", type=Path, help="directories of runs; default: all in --output-dir")
    flush.add_argument("--output-dir", type=Path, default=Path("runs"), help="default: runs")
    arguments = parser.parse_args(args)
    found = [file.parent for file in arguments.output_dir.rglob(RECORDS)]
    directories = arguments.runs or sorted(found, key=lambda path: (len(path.parts), path))  # parents come first
    uri = tracking_uri()
    problems: dict[Path, str] = {}
    found_any = bool(directories)
    for _ in range(2):  # a reproduction's own records come before and after those of its trainings
        for directory in directories:
            problems[directory] = _flush(directory, uri)
        directories = [directory for directory, problem in problems.items() if problem]
    if directories:
        raise InputError("; ".join(problems[directory] for directory in directories))
    if not found_any:
        print(f"no records in {arguments.output_dir}")
    return 0


def _flush(directory: Path, uri: str) -> str:
    """What is wrong with this run, or "". Raises InputError where MLflow takes nothing, of whatever run."""
    if not (directory / RECORDS).is_file():
        return f"{directory} has no {RECORDS}; name the directory of a run"
    try:
        key = json.loads((directory / "run.json").read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError):
        return f"{directory} has no run.json that can be read; remove the directory, or mend it"
    with locked(directory, wait=False) as is_ours:
        if not is_ours:
            print(f"{directory}: left to the command that trains it")
            return ""
        spool = Spool(directory)
        before, sender = spool.unsent, Sender(spool, key, uri)
        try:
            while spool.unsent:
                sender.send_next()
        except (InputError, NotYetError) as error:
            return f"{directory}: {error}"
        except (MlflowException, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(uri, shown(uri))
            raise InputError(
                f"{directory}: {spool.unsent} records wait on; MLflow at {shown(uri)}: {reason}; check "
                "MLFLOW_TRACKING_URI, and try again when it answers"
            ) from error
    print(f"{directory}: {before} records sent" if before else f"{directory}: all sent before")
    for missing in sender.missing:
        print(f"warning: {missing} is gone and was not sent")
    return ""


if __name__ == "__main__":
    run_command(main)
