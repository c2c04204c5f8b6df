"""A model ranks the points of data whose items have other ids, some of which it does not know."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_training import SETTINGS, trained

from pnfrec_dist.data.collate import history_batch
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.evaluation.metrics import measures_of, summarize
from pnfrec_dist.files.locations import Location
from pnfrec_dist.inference.artifact import Exported, of_checkpoint
from pnfrec_dist.inference.gamma_search import Split
from pnfrec_dist.inference.other_catalog import rank_points

SHUFFLED = ["n1", "7", "3", "n2", "12", "1", "9", "n3", "5", "2", "n4", "11", "8", "n5", "4"]
"""Raw ids of other data: 6 and 10 are gone, n1 to n5 are new."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, prepared_writer: Callable[..., Path]) -> Exported:
    """A model of items 1 to 12."""
    directory = tmp_path_factory.mktemp("old")
    data = open_prepared(Location(prepared_writer(directory / "tiny")))
    return of_checkpoint(trained(data, SETTINGS, directory / "run"), SETTINGS, data)


def test_ranks_of_its_own_data_are_those_of_its_evaluation(
    exported: Exported, tmp_path: Path, prepared_writer: Callable[..., Path]
) -> None:
    data = open_prepared(Location(prepared_writer(tmp_path / "tiny")))
    found = rank_points(exported, data, "validation")
    own = Split(exported, data, "validation").evaluated(0.0, found.points)
    assert found.num_unknown == 0 and found.target_rank.tolist() == own.target_rank.tolist()


def model_ids(items: np.ndarray) -> list[int]:
    """Of the items that the model knows."""
    return [int(SHUFFLED[item - 1]) for item in items if SHUFFLED[item - 1].isdigit()]


def test_ranks_of_other_data_against_a_plain_loop(
    exported: Exported, tmp_path: Path, prepared_writer: Callable[..., Path]
) -> None:
    data = open_prepared(Location(prepared_writer(tmp_path / "tiny", items=15, seed=3, raw_ids=SHUFFLED)))
    found, unknown = rank_points(exported, data, "validation"), 0
    vectors = exported.model.item_table.weight.detach()
    for point in range(len(found.points)):
        part = found.points.part(np.array([point]))
        target = model_ids(part.target_item)
        if not target:
            unknown += 1
            assert found.target_rank[point] > 12 + 20
            continue
        newest = model_ids(part.history.row(0))[-3:]
        if not newest:
            continue
        with torch.no_grad():
            batch = history_batch(Ragged.of([newest]), np.arange(1), 3, torch.device("cpu"))
            scores = (exported.model.last_hidden(batch)[0] @ vectors.T).tolist()
        others = set(range(1, 13)) - set(model_ids(part.seen.row(0))) - set(target)
        assert found.target_rank[point] == 1 + sum(scores[other] >= scores[target[0]] for other in others)
    assert found.num_unknown == unknown > 0
    settings = exported.settings.evaluation
    wanted = summarize(
        found.target_rank, found.points.target_is_positive, settings.cutoffs, measures_of(settings.measures)
    )
    assert found.metrics == wanted
