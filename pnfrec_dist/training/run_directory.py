"""Directories of runs: who uses one, with which settings it was started, and which one a command resumes.

runs/<run>/run.json        settings, digest of the data, whether it has ended
runs/<run>/run.lock        held by the command that trains the run; the system releases it however that ends
runs/<run>/failure.txt     traceback of the last error that ended it, if any
runs/<run>/checkpoints/    training/checkpoint_manager.py
runs/<run>/tracking.jsonl  tracking/spool.py
"""

import contextlib
import json
import secrets
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pnfrec_dist.config.mappings import flatten, override, to_mapping
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import write_json
from pnfrec_dist.files.locations import reading
from pnfrec_dist.files.locks import held
from pnfrec_dist.training.checkpoint import stored_state
from pnfrec_dist.training.checkpoint_manager import checkpoints, is_checkpoint_name, newest_usable, require_usable

RUN_FILE, LOCK_FILE, FAILURE_FILE = "run.json", "run.lock", "failure.txt"
MAY_CHANGE = (
    "num_workers",
    "min_workers",
    "num_gpus",
    "epochs",
    "dry_run",
    "resume",
    "max_failures",
    "stall_timeout",
    "data_dir",
    "output_dir",
    "experiment",
    "ray_address",
    "config",
    "item_table",
    "train.patience",
    "train.accumulation",
    "train.cuda_graph",
    "train.compile",
    "train.non_finite",
    "loss.exact_path",
    "loss.tile_mib",
    "checkpoint.every_steps",
    "checkpoint.every_minutes",
    "checkpoint.keep",
    "checkpoint.background",
    "evaluation.batch_size",
)
"""Settings that may differ when a run resumes: they change speed, rounding, the draws of dropout (workers,
accumulation) or duration, but not what is trained."""
PRECISION = "train.precision"
AUTO_MAY_CHANGE = tuple(name for name in MAY_CHANGE if name not in ("epochs", "experiment", "train.patience"))
"""Settings that may differ when --resume auto resumes a run."""


@dataclass
class Run:
    """The directory of one run, as a command uses it."""

    directory: Path
    settings: dict[str, Any]
    data_digest: str
    key: str = field(default_factory=lambda: secrets.token_hex(16))
    """identifies the run in MLflow before MLflow has given it an id"""
    ended: str = ""
    """"": it can be resumed; else how it ended"""

    def write(self) -> None:
        """Writes run.json in one move, so that a reader finds the old or the new file."""
        self.directory.mkdir(parents=True, exist_ok=True)
        content = {name: value for name, value in vars(self).items() if name != "directory"}
        write_json(self.directory / RUN_FILE, content, indent=2)

    @contextmanager
    def locked(self, way_out: str = "start another run with --resume never", *, wait: bool = False) -> Iterator[None]:
        """Locks the run. Raises InputError if another command uses it; wait: waits until none does."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with held(self.directory / LOCK_FILE, wait=wait) as is_ours:
            if not is_ours:
                raise InputError(f"{self.directory} is being trained by another command; wait for it, or {way_out}")
            yield


def read_run(directory: Path) -> Run:
    """Raises InputError if `directory` is not a run."""
    file = directory / RUN_FILE
    with reading(file, "name another run, or start one with --resume never"):
        if not file.exists():
            raise InputError(f"{directory} is not a run (it has no {RUN_FILE}); name a directory below runs/")
        return Run(directory, **json.loads(file.read_text(encoding="utf-8")))


def choose_run(settings: Settings, data_digest: str) -> Run:
    """The run for --resume: an existing one to resume, or a new one that is not written yet.

    Raises InputError if a named run or checkpoint is missing, damaged, or has other settings or data.
    """
    if settings.resume == "never":
        return _new_run(settings, data_digest)
    if settings.resume == "auto":
        return _unfinished(settings, data_digest) or _new_run(settings, data_digest)
    return _named(settings, data_digest)


def finished_run(settings: Settings, data_digest: str) -> Run | None:
    """The newest finished run in settings.output_dir with equal settings, whatever the name of the model."""
    same = _same_runs(settings, data_digest, (*AUTO_MAY_CHANGE, "model"))
    return next((run for run in same if run.ended == "finished"), None)


def training_key(settings: Settings) -> str:
    """A text that is equal for settings that train the same, whatever the name of the model; see finished_run."""
    left_out = {*AUTO_MAY_CHANGE, "model"}
    return repr(sorted((n, v) for n, v in flatten(to_mapping(settings)).items() if n not in left_out))


def begin(run: Run, settings: Settings) -> tuple[int, int]:
    """Begins or resumes a locked run: the (epoch, step) from which it goes on, (1, 0) at the start.

    With --resume <checkpoint>, newer checkpoints of the run are set aside; otherwise it would resume from them.
    """
    named = Path(settings.resume).resolve()
    if named.parent == run.directory / "checkpoints":
        for newer in checkpoints(run.directory):
            if newer.name > named.name:
                newer.rename(newer.with_name(f"set-aside-{newer.name}-{secrets.token_hex(2)}"))
    run.ended = ""
    run.write()
    path, _ = newest_usable(run.directory)
    if path is None:
        return 1, 0
    state = stored_state(path)["train_state"]
    return state["epoch"], state["step"]


def differences(settings: Settings, data_digest: str, run: Run, may_change: tuple[str, ...] = MAY_CHANGE) -> list[str]:
    """How settings and data differ from the run's, as "name stored -> now". Settings that are missing in an older run
    have their defaults. train.precision auto differs from none: a run keeps what it began with.

    Raises InputError for stored settings that cannot be read.
    """
    own = override(Settings(), run.settings, str(run.directory / RUN_FILE))
    stored, now = flatten(to_mapping(own)), flatten(to_mapping(settings))
    if now[PRECISION] == "auto":
        may_change = (*may_change, PRECISION)
    found = [
        f"{name} {stored.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(stored.keys() | now.keys())
        if name not in may_change and stored.get(name) != now.get(name)
    ]
    return [*found, "the content of the data set"] if run.data_digest != data_digest else found


def _new_run(settings: Settings, data_digest: str) -> Run:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    name = f"{settings.model}-{settings.dataset}-{settings.seed}-{stamp}-{secrets.token_hex(2)}"
    return Run(Path(settings.output_dir).resolve() / name, to_mapping(settings), data_digest)


def _unfinished(settings: Settings, data_digest: str) -> Run | None:
    """The newest run of the same settings and data that has not ended and that no command uses."""
    same = _same_runs(settings, data_digest, AUTO_MAY_CHANGE)
    return next((run for run in same if not run.ended and not _is_driven(run)), None)


def _same_runs(settings: Settings, data_digest: str, may_change: tuple[str, ...]) -> list[Run]:
    """The runs in settings.output_dir of the same settings and data, newest first."""
    found = []
    for file in Path(settings.output_dir).resolve().glob(f"*/{RUN_FILE}"):
        with contextlib.suppress(InputError):
            run = read_run(file.parent)
            if not differences(settings, data_digest, run, may_change):
                found.append((file.stat().st_mtime, run))
    return [run for _, run in sorted(found, key=lambda entry: entry[0], reverse=True)]


def _is_driven(run: Run) -> bool:
    """Whether another command uses the run, or this user may not write to it."""
    if not (run.directory / LOCK_FILE).exists():
        return False
    try:
        with run.locked():
            return False
    except (InputError, OSError):
        return True


def _named(settings: Settings, data_digest: str) -> Run:
    named = Path(settings.resume).resolve()
    if not named.is_dir():
        raise InputError(
            f"--resume is {settings.resume!r}, and there is no such directory; give a run's directory or one of its "
            "checkpoints, or auto or never"
        )
    is_checkpoint = named.parent.name == "checkpoints"
    if is_checkpoint and not is_checkpoint_name(named.name):
        raise InputError(
            f"--resume is {settings.resume!r}, but checkpoints are called step-<steps>; to use one that was set aside, "
            "rename it first"
        )
    run = read_run(named.parent.parent if is_checkpoint else named)
    if found := differences(settings, data_digest, run):
        raise InputError(f"--resume {settings.resume}: that run differs in {'; '.join(found)}; resume it as it was")
    if is_checkpoint:
        require_usable(named)
        return run
    path, problems = newest_usable(run.directory)
    if path is None:
        reason = f" ({problems[0]})" if problems else ""
        raise InputError(f"--resume {settings.resume}: that run has no complete checkpoint{reason}; start another one")
    return run


def write_failure(run_dir: Path, error: BaseException) -> str:
    """Writes an error's traceback to a file of the run: " (more in FILE)", or "" if that fails."""
    file = run_dir / FAILURE_FILE
    with contextlib.suppress(OSError):
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return f" (more in {file})"
    return ""
