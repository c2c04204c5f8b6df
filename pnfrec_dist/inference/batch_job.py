"""The command recommend: makes lists for all users, part by part on workers."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import torch

from pnfrec_dist.cluster.session import planned_workers
from pnfrec_dist.cluster.tasks import run_units
from pnfrec_dist.cluster.worker_plan import WorkerOptions
from pnfrec_dist.config.inference_settings import RecommendSettings
from pnfrec_dist.config.mappings import to_mapping
from pnfrec_dist.data.prepared import PreparedData
from pnfrec_dist.data.user_histories import UserPart, read_users
from pnfrec_dist.distributed import torch_threads
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.locations import sha256_of
from pnfrec_dist.files.text import counted, duration
from pnfrec_dist.inference.artifact import Exported, weights_digest
from pnfrec_dist.inference.candidates import ABOUT
from pnfrec_dist.inference.item_filters import parts_with, read_filters, read_ids
from pnfrec_dist.inference.list_maker import Filters, ListMaker, ListSettings
from pnfrec_dist.inference.list_output import ListFiles, Part, write_part
from pnfrec_dist.inference.trained_model import open_with_data

pc: Any = pyarrow.compute  # its functions are made at import, which no type checker sees
LINE_SECONDS = 10.0
PARTS_AT_ONCE = {"cpu": 1, "cuda": 4}
"""Parts that a worker makes at the same time: while a GPU ranks one, others are read and written."""
MOST_PARTS = 128
"""Parts of one Ray task on a GPU. Ray starts a process for each task, which takes seconds."""


def recommend(settings: RecommendSettings) -> int:
    """Writes the lists of all requested users. Raises InputError, and RunError if workers are lost."""
    trained, data = open_with_data(settings)
    if settings.index:
        from pnfrec_dist.inference.item_index import open_index  # FAISS is an extra

        open_index(Path(settings.index), trained)
    filters = read_filters(trained, settings.allow, settings.deny, settings.deny_pairs)
    wanted = read_ids(settings.users, "--users") if settings.users else None
    parts = parts_with(data, wanted)
    total = sum(part.rows for part in parts)
    files = ListFiles(Path(settings.out).resolve(), request := _request(settings, trained, data))
    print(_about(settings, trained, data, total, len(parts)), flush=True)
    if settings.dry_run:
        print("dry run: nothing was written")
        return 0
    started = time.monotonic()
    with files.opened() as done, _told_when_interrupted():
        if done:
            print(f"resuming: {len(done)} of {len(parts)} parts are already made", flush=True)
        missing = [part for part in parts if part.number not in done]
        if missing:
            with planned_workers(WorkerOptions(settings.ray_address, settings.num_workers, settings.num_gpus)) as plan:
                print(plan, flush=True)
                progress = _Progress(sum(part.rows for part in missing))

                def on_done(part: UserPart, made: Part) -> None:
                    done[part.number] = made
                    progress.show(part.rows)

                if settings.index and plan.use_gpu:
                    raise InputError("--index searches on CPUs; leave it out on GPUs, which rank exactly and fast")
                lists = ListSettings.of(settings, trained)
                job = _Job(files.making, trained, data.raw_item_ids(), lists, filters, wanted, settings.index)
                share = min(-(-len(missing) // plan.num_workers), MOST_PARTS) if plan.use_gpu else 1
                run_units(plan, _make_parts, [job], missing, on_done, share)
        made = [done[number] for number in sorted(done)]
        users, popular, rows = (sum(getattr(part, name) for part in made) for name in ("users", "popular", "rows"))
        files.publish(made, {"run": settings.run, **request, "users": users, "popular": popular, "rows": rows})
    fallback = f"; {popular:,} of them, without a known like, have popular items" if popular else ""
    print(f"wrote {rows:,} rows for {users:,} users{fallback}, in {duration(time.monotonic() - started)}")
    if not rows:
        print("no user has a list: all have seen every item that may be listed; --keep-seen lists seen items, too")
    print(f"lists: {files.directory}")
    return 0


@dataclass(frozen=True)
class _Job:
    """The input that all parts share."""

    making: Path
    """directory of the parts"""
    trained: Exported
    raw_ids: pa.Array
    """raw ids of the data set's items"""
    settings: ListSettings
    filters: Filters
    wanted: pa.Array | None
    """raw ids of users; None: all"""
    index: str
    """directory of the index; empty: exact lists"""


def _make_parts(use_gpu: bool, cpus: float, parts: Sequence[UserPart], job: _Job) -> Iterator[Part]:
    """Makes the lists of each part."""
    device = torch.device("cuda" if use_gpu else "cpu")
    at_once = PARTS_AT_ONCE[device.type]
    with torch_threads(max(1, int(cpus))), ThreadPoolExecutor(at_once) as pool:
        candidates = None
        if job.index:
            from pnfrec_dist.inference.item_index import mapped

            candidates = mapped(Path(job.index)).candidates
        maker = ListMaker(job.trained, job.raw_ids, job.settings, job.filters, device, candidates)
        # In this thread, Ctrl-C ends a part at once, which may take a CPU long.
        yield from (pool.map if at_once > 1 else map)(lambda part: _make_part(part, job, maker), parts)


def _make_part(part: UserPart, job: _Job, maker: ListMaker) -> Part:
    users = read_users(part, len(job.raw_ids), job.wanted, maker.reads)
    lists = maker.make(users)
    popular = pc.sum(pc.and_(lists["is_popular"], pc.equal(lists["rank"], 1))).as_py() or 0
    return write_part(job.making, part.number, lists, len(users), popular)


def _request(settings: RecommendSettings, trained: Exported, data: PreparedData) -> dict[str, Any]:
    """Everything that the lists depend on."""
    files = {name: getattr(settings, name) for name in ("users", "allow", "deny", "deny_pairs")}
    return {
        "model": {
            "settings": to_mapping(trained.settings),
            "data_digest": trained.data_digest,
            "weights_sha256": weights_digest(trained.model.state_dict()),
        },
        "data": {
            "dataset": data.manifest.dataset,
            "digest": data.manifest.digest,
            "users": [[entry.path, entry.sha256] for entry in data.manifest.files_of("users")],
        },
        "lists": {
            "top_k": settings.top_k,
            "gamma": trained.gamma(settings.gamma),
            "keep_seen": settings.keep_seen,
        },
        **({"index": sha256_of(Path(settings.index) / ABOUT)} if settings.index else {}),
        "filters": {name: sha256_of(Path(path)) if path else None for name, path in files.items()},
    }


def _about(settings: RecommendSettings, trained: Exported, data: PreparedData, users: int, parts: int) -> str:
    of_old = ""
    if trained.data_digest != data.manifest.digest:
        shared = len(set(trained.raw_ids) & set(data.raw_item_ids().to_pylist()))
        was = trained.settings.dataset
        of = (
            f"another state of {was}"
            if was == data.manifest.dataset
            else f"{was}, but the users are from {data.manifest.dataset}"
        )
        of_old = f"; trained on {of}: of their {data.num_items:,} items, it knows {shared:,} by raw id"
    gamma = f", gamma {used:g}" if (used := trained.gamma(settings.gamma)) else ""
    whose = f"{users:,} users of {data.directory}, in {counted(parts, 'part')}"
    return f"{trained.settings.model} ({len(trained.raw_ids):,} items{of_old})\ntop {settings.top_k} for {whose}{gamma}"


@contextlib.contextmanager
def _told_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command continues and keeps the parts already made", flush=True)
        raise


class _Progress:
    """Prints a line every ten seconds, and at the end."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.started = self.said = time.monotonic()

    def show(self, users: int) -> None:
        self.done += users
        now = time.monotonic()
        if now - self.said >= LINE_SECONDS or self.done == self.total:
            speed = self.done / (now - self.started)
            left = duration((self.total - self.done) / speed)
            print(f"{self.done:,} of {self.total:,} users  {speed:,.0f} users/s  {left} left", flush=True)
            self.said = now
