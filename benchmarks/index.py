"""python -m benchmarks.index: lists from an approximate index beside exact lists, over a catalog of a million items.

Users are drawn who like items of a few topics, and a model is trained on them with sampled softmax, so that its vectors
lie as those of trained models do. Both kinds of lists are made by the same code in this process, with all its CPUs.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.machine import processor
from benchmarks.prepared_like import write_prepared_like
from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.prepared import PreparedData, TrainData, open_prepared
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.user_histories import UserLists, read_users, user_parts
from pnfrec_dist.distributed import World
from pnfrec_dist.files.locations import Location
from pnfrec_dist.files.tables import text_table
from pnfrec_dist.inference.artifact import Exported, of_checkpoint
from pnfrec_dist.inference.candidates import Candidates
from pnfrec_dist.inference.item_index import COUNT, build, mapped
from pnfrec_dist.inference.list_maker import Filters, ListMaker, ListSettings
from pnfrec_dist.training.checkpoint_manager import newest_usable
from pnfrec_dist.training.events import EpochDone, Event
from pnfrec_dist.training.loop import Hooks, TrainLoop

K, TOPICS_OF_USER = 20, 4
ITEMS_OF_TOPIC = 500


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--users", type=int, default=20_000, help="training users (%(default)s)")
    parser.add_argument("--listed", type=int, default=2_000, help="users whose lists are made (%(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--recalls", type=float, nargs="+", default=(0.95, 0.98, 0.99), help="wanted recall@100")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pnfrec-bench-") as scratch:
        work, users = Path(scratch), arguments.users
        drawn = of_topics(users, arguments.items)
        data = write_prepared_like(work / "topics", users, arguments.items, train_users=users, data=drawn)
        compare(arguments, open_prepared(Location(data)), work)


def of_topics(users: int, items: int) -> TrainData:
    """Users with histories of ML-1M's lengths over a few topics each. Items of a topic are popular as 1 / rank."""
    rng = np.random.default_rng(0)
    topics = max(items // ITEMS_OF_TOPIC, 1)
    topic_of_item = rng.permutation(items) % topics
    by_topic = np.argsort(topic_of_item, kind="stable")
    starts = np.searchsorted(topic_of_item[by_topic], np.arange(topics + 1))
    lengths = np.exp(4.0 + 0.98 * rng.normal(size=users)).round().clip(2, 1500).astype(int)
    liked = rng.integers(0, topics, (users, TOPICS_OF_USER))
    owner = np.repeat(np.arange(users), lengths)
    topic = liked[owner, rng.integers(0, TOPICS_OF_USER, len(owner))]
    sizes = np.diff(starts)[topic]
    place = np.minimum(sizes ** rng.random(len(owner)), sizes - 1).astype(int)
    positive = Ragged(np.concatenate([[0], np.cumsum(lengths)]), (by_topic[starts[topic] + place] + 1).astype(np.int32))
    return TrainData(positive, Ragged(np.zeros(users + 1, dtype=np.int64), np.empty(0, dtype=np.int32)))


def trained(data: PreparedData, epochs: int, work: Path) -> Exported:
    settings = Settings(
        dataset="topics",
        model="sasrec_p",
        epochs=epochs,
        encoder=EncoderSettings(hidden_size=64, max_length=50),
        loss=LossSettings(cross_entropy="sampled_softmax"),
        train=TrainSettings(patience=epochs),
    )

    def report(event: Event) -> None:
        if isinstance(event, EpochDone):
            print(f"epoch {event.epoch}: {event.metrics['train/loss']:.3f}, {event.seconds:.0f} s", flush=True)

    TrainLoop(settings, data, work / "run", World(), Hooks(report, lambda: False)).run()
    newest, _ = newest_usable(work / "run")
    assert newest is not None
    return of_checkpoint(newest, settings, data)  # its validation users say nothing, so there is no best epoch


def compare(arguments: argparse.Namespace, data: PreparedData, work: Path) -> None:
    model = trained(data, arguments.epochs, work)
    parts = user_parts(data)
    users = read_users(parts[0], data.num_items)
    listed = first(parts, data, arguments.listed)
    settings = ListSettings(K, 0.0, keep_seen=False)
    exact_seconds, exact = timed(model, data, listed, settings)
    rows = [["exact", "", "", f"{arguments.listed / exact_seconds:,.0f}", "", ""]]
    vectors = ListMaker(model, data.raw_item_ids(), settings, Filters(), torch.device("cpu")).vectors(users)
    for wanted in arguments.recalls:
        started = time.perf_counter()
        about = build(model, vectors[:1_000], wanted, work / f"index{wanted}")
        built = time.perf_counter() - started
        index = mapped(work / f"index{wanted}")
        seconds, found = timed(model, data, listed, settings, index.candidates)
        recall, speed = shared(exact, found), arguments.listed / seconds
        searched = f"{about.searched:,} of {about.lists:,}"
        faster = f"{exact_seconds / seconds:.1f}x"
        rows.append([f"index, {about.recall:.3f}", searched, f"{built:.0f}", f"{speed:,.0f}", faster, f"{recall:.4f}"])
    print(f"{processor()}, {torch.get_num_threads()} threads; {arguments.items:,} items, d = 64")
    print(f"lists of {K} for {arguments.listed:,} users")
    head = [f"lists, recall@{COUNT}", "searched", "built, s", "users/s", "beside exact", f"recall@{K}"]
    print(text_table(head, rows, "<" + ">" * (len(head) - 1)))


def first(parts: list, data: PreparedData, count: int) -> list[UserLists]:
    found = []
    for part in parts:
        found.append(read_users(replace(part, rows=min(part.rows, count)), data.num_items))
        count -= part.rows
        if count <= 0:
            return found
    return found


def timed(
    model: Exported,
    data: PreparedData,
    users: list[UserLists],
    settings: ListSettings,
    candidates: Candidates | None = None,
) -> tuple[float, pa.Table]:
    """(seconds, lists): the median of three."""
    maker = ListMaker(model, data.raw_item_ids(), settings, Filters(), torch.device("cpu"), candidates)
    seconds, made = [], []
    for _ in range(3):
        started = time.perf_counter()
        made = [maker.make(part) for part in users]
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds)), pa.concat_tables(made)


def shared(exact: pa.Table, found: pa.Table) -> float:
    """Share of the exact lists' items that the others hold."""
    pairs = [set(zip(t["user_id"].to_pylist(), t["raw_item_id"].to_pylist(), strict=True)) for t in (exact, found)]
    return len(pairs[0] & pairs[1]) / len(pairs[0])


if __name__ == "__main__":
    main()
