"""python -m benchmarks.authors: the details in which the PNFRec authors' code differs, one at a time, at d = 231.

Trains `sasrec_p`, `pnfrec`, and `pnfrec` with each detail on ML-1M, and prints tables of both evaluations. The details
change the model from outside (unittest.mock), each training in a process of its own: the product has no settings for
them. --work keeps results, and the same command continues. A training takes about ten minutes on one core.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from unittest.mock import patch

import torch
from torch import Tensor, nn

from pnfrec_dist.cli import run_command
from pnfrec_dist.config.conf_files import settings_from_conf
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.data.schema import PAD_ID
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import RunError
from pnfrec_dist.experiments.comparison import Comparison, Recorded
from pnfrec_dist.experiments.points_report import points_parts
from pnfrec_dist.losses import contrastive, cross_entropy
from pnfrec_dist.losses.terms import StepTensors
from pnfrec_dist.model.block import Block
from pnfrec_dist.model.dual_encoder import DualEncoder, PNFRec
from pnfrec_dist.model.encoder import INIT_STD
from pnfrec_dist.training import initial_model, loop
from pnfrec_dist.training.events import EpochDone, Event
from pnfrec_dist.training.result import read_result, read_test_points, read_test_users

MODEL = "pnfrec"


def shared_parts(model: PNFRec, _: Settings) -> None:
    """Both encoders have one table of positions and one final layer norm."""
    main, negative = model.encoders.main, model.encoders.negative
    assert negative is not None
    negative.positions, negative.norm = main.positions, main.norm
    load, shared = DualEncoder.load_state_dict, ("positions.weight", "norm.weight", "norm.bias")

    def with_shared(encoders: DualEncoder, state: dict[str, Tensor]) -> object:
        """A checkpoint holds a shared parameter once, under the main encoder's name."""
        return load(encoders, state | {f"negative.{name}": state[f"main.{name}"] for name in shared})

    patch.object(DualEncoder, "load_state_dict", with_shared).start()


def padding_class(model: PNFRec, settings: Settings) -> None:
    """The padding row is a class of the softmax, and is trained."""
    drawn = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        model.item_table.weight[PAD_ID].normal_(0.0, INIT_STD, generator=drawn)
    patch.object(cross_entropy._Softmax, "padding", 0).start()


def without_last_dislike(_: PNFRec, __: Settings) -> None:
    """L_c leaves out each user's last dislike, which the negative encoder does not read as input either."""
    total = contrastive.ContrastiveTerm.total

    def shorter(term: contrastive.ContrastiveTerm, tensors: StepTensors, settings: Settings) -> Tensor:
        contrast = tensors.batch.contrast
        assert contrast is not None
        places_BN = contrast.negatives_BN
        columns_N = torch.arange(places_BN.shape[1], device=places_BN.device)
        is_last_BN = columns_N == (places_BN != PAD_ID).sum(1, keepdim=True) - 1
        contrast = replace(contrast, negatives_BN=places_BN.masked_fill(is_last_BN, PAD_ID))
        return total(term, replace(tensors, batch=replace(tensors.batch, contrast=contrast)), settings)

    patch.object(contrastive.ContrastiveTerm, "total", shorter).start()


@torch.no_grad()
def equal_layers(model: PNFRec, settings: Settings) -> None:
    """Each draw of initial weights starts from the same seed, so that layers of the same shape start equal."""
    for part in model.encoders.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            part.weight.normal_(0.0, INIT_STD, generator=torch.Generator().manual_seed(settings.seed))
    for part in model.encoders.modules():
        if isinstance(part, Block):
            part.initialize(torch.Generator().manual_seed(settings.seed))


Change = Callable[[PNFRec, Settings], None]
DETAILS: dict[str, tuple[str, tuple[Change, ...]]] = {
    "sasrec_p": ("sasrec_p", ()),
    "pnfrec": (MODEL, ()),
    "dot product": ("pnfrec_dot", ()),
    "shared positions and norm": (MODEL, (shared_parts,)),
    "padding row as a class": (MODEL, (padding_class,)),
    "without the last dislike": (MODEL, (without_last_dislike,)),
    "equal initial layers": (MODEL, (equal_layers,)),
    "all five": ("pnfrec_dot", (shared_parts, padding_class, without_last_dislike, equal_layers)),
}
"""row of the table -> model in conf/model/, changes to it"""


def main(args: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.authors", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/prepared/ml1m"), help="prepared ML-1M (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/authors"), help="directory of results (%(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each row: 1, 2, ... (%(default)s)")
    parser.add_argument("--epochs", type=int, default=100, help="most epochs of a training (%(default)s)")
    parser.add_argument("--hidden-size", type=int, default=231, help="%(default)s, as published")
    parser.add_argument("--only", nargs="+", choices=DETAILS, default=list(DETAILS), help="rows (default: all)")
    parser.add_argument("--at-a-time", type=int, default=1, help="trainings at a time, each with its share of the CPUs")
    parser.add_argument("--one", nargs=2, metavar=("DETAIL", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(args)
    arguments.work /= f"d{arguments.hidden_size}-{arguments.epochs}-{open_prepared(arguments.data).manifest.digest[:8]}"
    if arguments.one:
        train(arguments, arguments.one[0], int(arguments.one[1]))
        return 0
    waiting = [(name, seed) for seed in range(1, arguments.seeds + 1) for name in arguments.only]
    waiting = [one for one in waiting if read_result(run_dir(arguments, *one)) is None]
    run_all(arguments, waiting)
    found = recorded(arguments)
    parts = points_parts(Comparison(found))
    if MODEL in found:
        _, *differences = points_parts(Comparison(found, reference=MODEL))
        parts += differences[differences.index(f"### Difference from `{MODEL}`, on both") :]
    print("\n\n".join(parts))
    return 0


def run_all(arguments: argparse.Namespace, waiting: list[tuple[str, int]]) -> None:
    """Trains in processes of their own, each on its own CPUs: the changes stay in the process."""
    cpus = sorted(os.sched_getaffinity(0))
    share = max(len(cpus) // arguments.at_a_time, 1)
    free: SimpleQueue[list[int]] = SimpleQueue()
    for place in range(arguments.at_a_time):
        free.put(cpus[place * share : (place + 1) * share] or cpus)

    def one(name: str, seed: int) -> None:
        mine = free.get()
        line = [sys.executable, "-m", "benchmarks.authors", *sys.argv[1:], "--one", name, str(seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(len(mine))}
        pinned = ["taskset", "-c", ",".join(map(str, mine))]
        try:
            code = subprocess.run([*pinned, *line], check=False, env=environment).returncode
        finally:
            free.put(mine)
        if code:
            raise RunError(f"{name}, seed {seed}: the training failed; the same command continues")

    with ThreadPoolExecutor(arguments.at_a_time) as pool:
        for done in [pool.submit(one, *training) for training in waiting]:
            done.result()


def run_dir(arguments: argparse.Namespace, name: str, seed: int) -> Path:
    return arguments.work / f"{name.replace(' ', '_')}-{seed}"


def train(arguments: argparse.Namespace, name: str, seed: int) -> None:
    """One training, with early stopping on the last interactions, as in the paper."""
    conf, changes = DETAILS[name]
    settings = settings_from_conf("ml1m", conf, "ml1m_paper")
    settings = replace(
        settings,
        seed=seed,
        epochs=arguments.epochs,
        encoder=replace(settings.encoder, hidden_size=arguments.hidden_size),
        train=replace(settings.train, cuda_graph=False),  # its batches on a GPU leave out the padding row's gradient
        dataset=arguments.data.name,
    )
    built = initial_model.build_model

    def changed(num_items: int, of: Settings, shards: World | None = None) -> PNFRec:
        model = built(num_items, of, shards)
        for change in changes:
            change(model, of)
        return model

    def report(event: Event) -> None:
        if isinstance(event, EpochDone):
            score = event.metrics["val/ndcg_p_at_10"]
            print(f"{name}, seed {seed}, epoch {event.epoch}: {score:.4f}, {event.seconds:.1f} s", flush=True)

    patch.object(loop, "build_model", changed).start()
    directory = run_dir(arguments, name, seed)
    directory.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hooks = loop.Hooks(report, lambda: False)
    loop.TrainLoop(settings, open_prepared(arguments.data), directory, World(device=device), hooks).run()
    if read_result(directory) is None:
        raise RunError(f"{name}, seed {seed}: the training has no result; see what it printed")


def recorded(arguments: argparse.Namespace) -> dict[str, list[Recorded]]:
    """Row of the table -> its trainings."""
    found: dict[str, list[Recorded]] = {}
    for name in arguments.only:
        for seed in range(1, arguments.seeds + 1):
            directory = run_dir(arguments, name, seed)
            result = read_result(directory)
            if result is not None:
                users, points = read_test_users(directory), read_test_points(directory)
                one = Recorded(name, seed, result, users, points, directory.name, has_model=False)
                found.setdefault(name, []).append(one)
    return found


if __name__ == "__main__":
    run_command(main)
