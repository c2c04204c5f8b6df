"""The index of items: what it finds beside exact lists, what is never listed, and which models it fits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_training import SETTINGS
from torch import Tensor

from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.errors import InputError
from pnfrec_dist.inference import candidates
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.inference.item_index import about_index, build, mapped, open_index
from pnfrec_dist.inference.recommender import Recommender, Users
from pnfrec_dist.training.initial_model import build_model

ITEMS, USERS, K = 3_000, 40, 10


def model_of(items: int = ITEMS, seed: int = 0) -> Exported:
    """A model whose item vectors lie in clusters, as those of trained models do."""
    settings = replace(SETTINGS, seed=seed)
    model = build_model(items, settings).eval()
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(50, 8, generator=generator)
    with torch.no_grad():
        chosen = centres[torch.randint(0, 50, (items,), generator=generator)]
        model.item_table.weight[1:] = chosen + 0.3 * torch.randn(items, 8, generator=generator)
    names = [str(item) for item in range(1, items + 1)]
    return Exported(settings, model, names, np.ones(items + 1, dtype=np.int64), 4.0, "digest")


def users_of(rng: np.random.Generator, longest: int, items: int = ITEMS) -> Users:
    histories = Ragged.of([rng.integers(1, items + 1, rng.integers(1, 6)) for _ in range(USERS)])
    seen = Ragged.of([rng.choice(items, rng.integers(0, longest), replace=False) + 1 for _ in range(USERS)])
    return Users(histories, Ragged.of([[]] * USERS), seen)


@pytest.fixture(scope="module")
def model() -> Exported:
    return model_of()


@pytest.fixture(scope="module")
def directory(model: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index that finds nearly all of the exact best."""
    out = tmp_path_factory.mktemp("index") / "index"
    build(model, vectors_of(model), 0.95, out)
    return out


def vectors_of(model: Exported) -> Tensor:
    users = users_of(np.random.default_rng(0), 5)
    with torch.inference_mode():
        return Recommender(model.model, model.num_positive_V).vectors(users, np.arange(USERS), 0.0)


def test_the_recall_that_it_states_is_that_of_a_plain_search(model: Exported, directory: Path) -> None:
    about, index, vectors = about_index(directory), mapped(directory), vectors_of(model)
    assert about.recall >= 0.95 and 1 <= about.searched < about.lists and about.num_items == ITEMS
    scores_BN = vectors.double() @ model.model.item_table.weight[1:].detach().double().T
    found_BC = index.candidates(vectors, 100)
    hits = [
        len(set(found.tolist()) & set((scores.topk(100).indices + 1).tolist()))
        for found, scores in zip(found_BC, scores_BN, strict=True)
    ]
    assert np.mean(hits) / 100 == pytest.approx(about.recall, abs=2e-3)


def test_more_lists_are_searched_for_more_recall(model: Exported, tmp_path: Path) -> None:
    low, high = (build(model, vectors_of(model), wanted, tmp_path / str(wanted)) for wanted in (0.5, 1.0))
    assert low.searched < high.searched and low.recall >= 0.5 and high.recall == 1.0


@pytest.mark.parametrize("longest", [5, 200])
def test_lists_of_a_search_of_everything_are_the_exact_ones(model: Exported, directory: Path, longest: int) -> None:
    index = mapped(directory)
    index.searched = about_index(directory).lists
    users, rows = users_of(np.random.default_rng(1), longest), np.arange(USERS)
    is_hidden_V = np.random.default_rng(2).random(ITEMS + 1) < 0.2
    exact = Recommender(model.model, model.num_positive_V, is_hidden_V).rank(users, rows, K)
    found = Recommender(model.model, model.num_positive_V, is_hidden_V, index.candidates).rank(users, rows, K)
    assert torch.equal(found.items_BK, exact.items_BK)
    assert torch.allclose(found.scores_BK, exact.scores_BK, rtol=1e-5, atol=1e-6)


def test_users_whose_candidates_are_not_enough_are_ranked_exactly(model: Exported) -> None:
    def few(hidden_BD: Tensor, count: int) -> Tensor:
        """The index finds items 1 to 12 alone, for some users."""
        found = torch.zeros(len(hidden_BD), count, dtype=torch.int64)
        found[hidden_BD[:, 0] > 0, :12] = torch.arange(1, 13)[:count]
        return found

    users, rows = users_of(np.random.default_rng(3), 3), np.arange(USERS)
    exact = Recommender(model.model, model.num_positive_V).rank(users, rows, K)
    found = Recommender(model.model, model.num_positive_V, candidates=few).rank(users, rows, K)
    some_B = torch.tensor([(items <= 12).all().item() for items in found.items_BK])
    assert torch.equal(found.items_BK[~some_B], exact.items_BK[~some_B])
    assert 0 < some_B.sum() < USERS and (found.items_BK > 0).all()


def test_seen_items_beyond_the_most_are_not_listed(
    model: Exported, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "FURTHER", (1, 3))
    users, rows = users_of(np.random.default_rng(4), 500), np.arange(USERS)
    found = Recommender(model.model, model.num_positive_V, candidates=mapped(directory).candidates).rank(users, rows, K)
    for row, items in enumerate(found.items_BK.tolist()):
        assert not set(items) & set(users.seen.row(row).tolist()) and len(set(items)) == K


def test_a_catalog_smaller_than_the_list(tmp_path: Path) -> None:
    model = model_of(items=7)
    users = Users(Ragged.of([[1, 2]]), Ragged.of([[]]), Ragged.of([[3]]))
    with torch.inference_mode():
        vectors = Recommender(model.model, model.num_positive_V).vectors(users, np.arange(1), 0.0)
    build(model, vectors, 1.0, tmp_path / "index")
    index = mapped(tmp_path / "index")
    found = Recommender(model.model, model.num_positive_V, candidates=index.candidates).rank(users, np.arange(1), 7)
    exact = Recommender(model.model, model.num_positive_V).rank(users, np.arange(1), 7)
    assert torch.equal(found.items_BK, exact.items_BK) and found.items_BK[0, -1] == 0


def test_an_index_of_another_model_and_a_damaged_one_are_refused(
    model: Exported, directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="is of another model"):
        open_index(directory, model_of(seed=1))
    build(model, vectors_of(model), 0.5, tmp_path / "index")
    with (tmp_path / "index" / "items.faiss").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x00\x01")
    with pytest.raises(InputError, match=r"items\.faiss is damaged"):
        open_index(tmp_path / "index", model)
    with pytest.raises(InputError, match="build an index with: pnfrec index"):
        open_index(tmp_path / "none", model)


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: (path.mkdir(), (path / "a").touch())])
def test_other_content_is_not_replaced(model: Exported, tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "out")
    with pytest.raises(InputError, match="exists and is no earlier index"):
        build(model, vectors_of(model), 0.5, tmp_path / "out")
