"""The command pnfrec: all commands by one name, as in `pnfrec train --dataset ml1m`."""

import importlib
from collections.abc import Sequence
from importlib import metadata

from pnfrec_dist.cli import run_command
from pnfrec_dist.errors import InputError, nearest

COMMANDS = {
    "prep": ("spark_jobs.prepare", "raw interaction logs -> a prepared data set, with PySpark"),
    "train": ("pnfrec_dist.train", "a prepared data set -> a trained, evaluated, tracked model"),
    "tune": ("tune.__main__", "search training settings with Ray Tune"),
    "reproduce": ("pnfrec_dist.reproduce", "train the paper's models, or others, with several seeds, and compare them"),
    "evaluate": ("pnfrec_dist.evaluate", "evaluate a trained model, or another system's lists, on held-out users"),
    "promote": ("pnfrec_dist.promote", "make a trained model the champion, if it is not worse on the newest data"),
    "recommend": ("pnfrec_dist.recommend", "lists for all users of a prepared data set"),
    "index": ("pnfrec_dist.index", "an approximate index of the items, for lists over large catalogs"),
    "serve": ("pnfrec_dist.serve", "a trained model over HTTP, on this machine"),
    "export": ("pnfrec_dist.export", "item vectors and encoders, for other programs"),
    "tracking": (
        "pnfrec_dist.tracking.__main__",
        "show the runs in a browser; send records that MLflow does not have yet",
    ),
}
"""Name -> (module with main(args), what it does)."""


def main(args: Sequence[str]) -> int | None:
    """Runs one command and returns its exit code. Raises InputError for an unknown name."""
    name = args[0] if args else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"pnfrec {metadata.version('pnfrec-dist')}")
        return 0
    if name not in COMMANDS:
        raise InputError(f"unknown command {name!r}; {nearest(name, COMMANDS)} (pnfrec --help)")
    return importlib.import_module(COMMANDS[name][0]).main(args[1:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: pnfrec COMMAND ...", "", *lines, "", "pnfrec COMMAND --help lists a command's flags."])


def run() -> None:
    """What the console script calls."""
    run_command(main)


if __name__ == "__main__":
    run()
