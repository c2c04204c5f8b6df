"""What all commands share: flags and help, one-line errors, exit codes."""

import argparse
import contextlib
import errno
import io
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from pnfrec_dist.config.conf_files import settings_from_conf
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError, RunError, one_line

T = TypeVar("T")

HOST = "127.0.0.1"
"""Where servers listen: only this machine reaches them."""
MODULES = {"tune": "tune", "prep": "spark_jobs"}
"""Commands whose module is not pnfrec_dist.<name>."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130
EXTRA_OF = {
    "pyspark": ("PySpark", "spark"),
    "py4j": ("PySpark", "spark"),
    "optuna": ("Optuna", "tune"),
    "flask": ("MLflow's full package", "serve"),
    "faiss": ("FAISS", "index"),
    "grpc_reflection": ("Ray Serve", "replicas"),
    "fastapi": ("Ray Serve", "replicas"),
    "prometheus_client": ("Ray Serve", "replicas"),
    "starlette": ("Ray Serve", "replicas"),
    "uvicorn": ("Ray Serve", "replicas"),
}
"""Package -> what it belongs to, and the extra of pnfrec-dist that brings it."""


def parse_train_settings(args: Sequence[str], *, any_model: bool = False) -> Settings:
    """Flags override settings_from_conf()."""
    chosen = selected(args, {"dataset": Settings.dataset, "model": "", "config": ""})
    settings = settings_from_conf(**chosen, any_model=any_model)
    return parse_flags(Settings, settings, args, command("train"))


def selected(args: Sequence[str], names: dict[str, str]) -> dict[str, str]:
    """The flags that choose YAML files, read before all others: {name: the given value, else the one in `names`}."""
    chosen = dict(names)
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in names:
            if not equals:
                value = args[position + 1] if position + 1 < len(args) else names[name]
            chosen[name] = value
    return chosen


def parse_flags(kind: type[T], default: T, args: Sequence[str], prog: str) -> T:
    """`default` (a settings dataclass) with the flags applied. Raises InputError in one line; --help exits."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, prog=prog, default=default, args=list(args))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(f"{_unboxed(errors.getvalue())}; see {prog} --help") from None


class Parser(argparse.ArgumentParser):
    """For commands without a settings class: wrong flags raise a one-line InputError."""

    def __init__(self, prog: str, **keywords: Any) -> None:
        super().__init__(prog=prog, **keywords)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def command(name: str) -> str:
    """How the user calls a command, in the way in which this one was called: "pnfrec train" or "python -m ...train"."""
    script = Path(sys.argv[0])
    by_name = script.name == "pnfrec" or script.parts[-2:] == ("pnfrec_dist", "__main__.py")
    return f"pnfrec {name}" if by_name else f"python -m {MODULES.get(name, f'pnfrec_dist.{name}')}"


def require_free(port: int) -> None:
    """Raises InputError if nothing can listen at the port of this machine."""
    try:
        with socket.create_server((HOST, port)):
            pass
    except (OSError, OverflowError) as error:
        raise InputError(f"--port is {port}, which cannot be used ({error}); choose another one") from error


def _unboxed(text: str) -> str:
    """tyro's boxed error as one line: what is wrong, and the nearest flag if tyro names one."""
    lines = [re.sub(r"[╭╮╰╯│]", "", line).strip() for line in text.splitlines()]
    sections = "\n".join(re.sub(r"^─.*", "\f", line) for line in lines).strip("\f\n ").split("\f")
    message = _wrong_value(re.sub(r"^Error parsing \w+: (?=\S+ (is|has|contains) )", "", one_line(sections[0])))
    meant = re.search(r"Perhaps you meant[^-]*(--[\w.-]+)", text)
    return f"{message}; did you mean {meant.group(1)}?" if meant else message


def _wrong_value(message: str) -> str:
    """tyro's message about a value of the wrong type, in this project's words."""
    for kind, meant in ((r"invalid literal for int\(\) .*?", "a whole number"), (r"could not convert .*?", "a number")):
        message = re.sub(rf"^Error parsing (--\S+): {kind}: ('.*')$", rf"\1 is \2; it must be {meant}", message)
    switch = re.fullmatch(r"Unrecognized options: (true|false|yes|no|on|off)", message, re.IGNORECASE)
    if switch:
        return f"{switch[1]!r} follows a switch, which takes no value; to turn it off: --train.no-compile, --no-dry-run"
    unread = re.match(r"Error parsing (--\S+): Could not find valid parse for arguments: \[(.*)\]", message)
    if unread:
        several = "; give several values with spaces between them" if "," in unread[2] else ""
        return f"{unread[1]} is {unread[2]}; it must be of the type that --help shows{several}"
    union = re.match(r"Error parsing (--\S+): no type matching (.*?) could be .*? from \[('.*?')\]", message)
    if not union:
        return message
    meant = {"INT": "a whole number", "FLOAT": "a number"}
    wanted = [
        meant.get(kind) or (f"one of {', '.join(names)}" if len(names) > 1 else names[0])
        for kind in union[2].split("|")
        if kind != "{None}"
        for names in [re.split(", ?", kind.strip("{}"))]
    ]
    return f"{union[1]} is {union[3]}; it must be {' or '.join(sorted(wanted))}"


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs a command's main(args) and exits: 0 done, 1 failed, 2 wrong input (errors in one line), 130 interrupted."""
    try:
        _make_printable()
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except (InputError, RunError) as error:
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in one_line(str(error)))
        print(f"error: {text}", file=sys.stderr)
        code = EXIT_INPUT if isinstance(error, InputError) else EXIT_FAILED
    except ModuleNotFoundError as error:
        needed = str(error.name).partition(".")[0]
        if needed not in EXTRA_OF:
            raise
        package, extra = EXTRA_OF[needed]
        print(f"error: this command needs {package}; install it: pip install 'pnfrec-dist[{extra}]'", file=sys.stderr)
        code = EXIT_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # that is: the reader of the output has closed it, as `| head` does
            if error.errno not in DISK_ERRORS:
                raise
            print(f"error: {error}; make room", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the exit must not try to print once more
        code = EXIT_FAILED
    sys.exit(code or 0)


def _make_printable() -> None:
    """Output that is closed is left out; characters that it does not know are written as \\u...."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_settings(settings: dict[str, Any]) -> None:
    """Prints resolved settings, one per line."""
    width = max(len(name) for name in settings)
    for name, value in settings.items():
        print(f"  {name:<{width}}  {value}")
