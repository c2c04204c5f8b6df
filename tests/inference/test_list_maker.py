"""Lists equal brute force for every user: whole data sets, filters, a model with an older catalog; cards."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pnfrec_dist.config.settings import EncoderSettings, History, LossSettings, Settings
from pnfrec_dist.data.collate import history_batch
from pnfrec_dist.data.prepared import PreparedData, open_prepared
from pnfrec_dist.data.ragged import Ragged
from pnfrec_dist.data.user_histories import UserLists, find_users, read_users, user_ids, user_parts
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.inference.list_maker import Filters, ListMaker, ListSettings, joined
from pnfrec_dist.inference.user_cards import before_split, card_text, cards
from pnfrec_dist.training.initial_model import build_model

CPU = torch.device("cpu")
SETTINGS = Settings(
    dataset="tiny", encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=4), loss=LossSettings(0.45, 0.25)
)
LISTS = ListSettings(top_k=4, gamma=0.0, keep_seen=False, batch_size=5)


def model_of(raw_ids: list[str], settings: Settings = SETTINGS) -> Exported:
    """With weights that spread scores."""
    model = build_model(len(raw_ids), settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
        model.item_table.weight[0] = 0  # padding
    likes_V = np.array([0, *(int(raw) * 7 % 11 for raw in raw_ids)])
    return Exported(settings, model, raw_ids, likes_V, 4.0, "digest")


def everyone(data: PreparedData) -> list[UserLists]:
    return [read_users(part, data.num_items) for part in user_parts(data)]


def row(lists: Ragged, place: int) -> list[int]:
    return lists.values[lists.offsets[place] : lists.offsets[place + 1]].tolist()


def brute_force(trained: Exported, raw: list[str], users: UserLists, place: int, hidden: set[str]) -> list[str]:
    """The list of one user, from the scores of all items one by one; ids in the data set are those in `raw`."""
    known = {name: number for number, name in enumerate(trained.raw_ids, 1)}

    def model_ids(lists: Ragged) -> list[int]:
        return [known[raw[item - 1]] for item in row(lists, place) if raw[item - 1] in known]

    reads = trained.settings.encoder.history
    history, disliked = model_ids(users.positive if reads == "positive" else users.items), model_ids(users.negative)
    if reads in ("signed", "both"):
        flags = zip(row(users.items, place), row(users.is_positive, place), strict=True)
        liked = [flag for item, flag in flags if raw[item - 1] in known]
        history = [item if flag else -item for item, flag in zip(history, liked, strict=True)]
    table_VD = trained.model.item_table.weight.detach()
    if history:
        lists = Ragged(np.array([0, len(history)]), np.array(history))
        with torch.no_grad():
            length = trained.model.max_length
            hidden_D = trained.model.last_hidden(history_batch(lists, np.array([0]), length, CPU))[0]
        scores = {name: float(hidden_D @ table_VD[number]) for name, number in known.items()}
    else:
        popularity = {name: math.log(1 + trained.num_positive_V[number]) for name, number in known.items()}
        unit = [table_VD[item] / table_VD[item].norm() for item in disliked[-trained.model.max_length :]]
        mean = torch.stack(unit).sum(0) / torch.stack(unit).sum(0).norm() if unit else table_VD[0] * 0
        cosine = {name: float(table_VD[n] @ mean / table_VD[n].norm()) for name, n in known.items()}
        scores = {name: popularity[name] * (1 - max(cosine[name], 0)) for name in known}
    seen = {raw[item - 1] for item in row(users.seen, place)}
    left = [name for name in trained.raw_ids if name not in seen | hidden]
    return sorted(left, key=lambda name: (-scores[name], known[name]))[: LISTS.top_k]


def listed(table: pa.Table) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in table.to_pylist():
        items = found.setdefault(entry["user_id"], [])
        items.append(entry["raw_item_id"])
        assert entry["rank"] == len(items)
    return found


@pytest.mark.parametrize("history", ["positive", "all", "signed", "both"])
@pytest.mark.parametrize("older", [False, True])
def test_every_user_s_list_equals_brute_force(prepared: Path, history: History, older: bool) -> None:
    """older: the model knows half of the items in another order, and two that the data set lacks."""
    data = open_prepared(prepared)
    raw = data.raw_item_ids().to_pylist()
    catalog = ["77", *raw[::-2], "99"] if older else raw
    loss = SETTINGS.loss if history == "positive" else LossSettings(terms=("ce_likes=1",) if history == "both" else ())
    encoder = EncoderSettings(hidden_size=8, num_blocks=1, max_length=4, history=history)
    trained = model_of(catalog, Settings(dataset="tiny", encoder=encoder, loss=loss))
    hidden = {catalog[2], catalog[4]}
    is_hidden_V = np.array([False, *(name in hidden for name in catalog)])
    maker = ListMaker(trained, data.raw_item_ids(), LISTS, Filters(is_hidden_V), CPU)
    seen_users = 0
    for part in user_parts(data):
        users = read_users(part, data.num_items)
        found = listed(maker.make(read_users(part, data.num_items, columns=maker.reads)))
        for place, user_id in enumerate(users.user_ids.to_pylist()):
            assert found.get(user_id, []) == brute_force(trained, raw, users, place, hidden)
            seen_users += 1
    assert seen_users == 31


@pytest.mark.parametrize("history", ["signed", "both"])
def test_dislikes_alone_get_a_list_of_their_own_from_signs(prepared: Path, history: History) -> None:
    """Not the popular items, and not the list of a user who likes these items."""
    data = open_prepared(prepared)
    encoder = replace(SETTINGS.encoder, history=history)
    loss = replace(SETTINGS.loss, terms=("ce_likes=1",) if history == "both" else ())
    trained = model_of(data.raw_item_ids().to_pylist(), replace(SETTINGS, encoder=encoder, loss=loss))
    (users,) = find_users(data, pa.array(["without likes"]))
    items = users.items
    found = []
    for liked, gamma in ((False, 0.0), (True, 0.0), (False, 0.5)):
        maker = ListMaker(trained, data.raw_item_ids(), replace(LISTS, top_k=12, gamma=gamma), Filters(), CPU)
        flags = Ragged(items.offsets, np.full(len(items.values), liked))
        found.append(maker.make(replace(users, is_positive=flags, negative=items)))
        assert not any(found[-1]["is_popular"].to_pylist())
    orders = [table["raw_item_id"].to_pylist() for table in found]
    assert len(orders[0]) == 12 - 2 and len({tuple(order) for order in orders}) == 3
    likes_V = trained.num_positive_V
    assert orders[0] != sorted(orders[0], key=lambda raw: -likes_V[int(raw)])


def test_on_ml1m_s_shape_lists_equal_torch_s_own_top_k() -> None:
    """3,412 items, 400 users with up to 200 likes, a smaller last batch."""
    rng, items, count = np.random.default_rng(0), 3_412, 400
    lengths = rng.integers(1, 200, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    liked = Ragged(offsets, rng.integers(1, items + 1, offsets[-1]))
    none, flags = (
        Ragged(np.zeros(count + 1, np.int64), np.empty(0, np.int64)),
        Ragged(offsets, np.ones(offsets[-1], bool)),
    )
    seen = [np.unique(row(liked, place)) for place in range(count)]
    seen_offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in seen])])
    names = pa.array([f"u{place:03d}" for place in range(count)])
    whole = Ragged(seen_offsets, np.concatenate(seen))
    users = UserLists(names, liked, flags, liked, none, whole, np.zeros(count, np.int32))
    trained = model_of([str(item) for item in range(1, items + 1)])
    lists = ListSettings(top_k=20, gamma=0.0, keep_seen=False, batch_size=150)
    table = ListMaker(trained, pa.array(trained.raw_ids), lists, Filters(), CPU).make(users)
    with torch.inference_mode():
        hidden_BD = trained.model.last_hidden(history_batch(liked, np.arange(count), 4, CPU))
        scores_BV = (hidden_BD.double() @ trained.model.item_table.weight.double().T).numpy()
    scores_BV[:, 0] = -np.inf
    for place, ids in enumerate(seen):
        scores_BV[place, ids] = -np.inf
    best = np.argsort(-scores_BV, axis=1, kind="stable")[:, :20]
    found = np.array(table["raw_item_id"].to_pylist(), dtype=np.int64).reshape(count, 20)
    scores = table["score"].to_numpy().reshape(count, 20)
    np.testing.assert_allclose(scores, np.take_along_axis(scores_BV, best, axis=1), atol=1e-4)
    assert (found == best).mean() > 0.999, "but for scores that float32 cannot tell apart"
    assert not any(set(found[place]) & set(ids) for place, ids in enumerate(seen))


def test_a_user_without_likes_gets_popular_items_and_says_so(prepared: Path) -> None:
    data = open_prepared(prepared)
    maker = ListMaker(model_of(data.raw_item_ids().to_pylist()), data.raw_item_ids(), LISTS, Filters(), CPU)
    tables = [maker.make(users) for users in everyone(data)]
    popular = {entry["user_id"] for table in tables for entry in table.to_pylist() if entry["is_popular"]}
    assert popular == {"without likes"}


def test_pairs_are_denied_and_seen_items_kept_on_request(prepared: Path, tmp_path: Path) -> None:
    data = open_prepared(prepared)
    trained = model_of(data.raw_item_ids().to_pylist())
    (users,) = find_users(data, pa.array(["u004"]))
    keeping = ListSettings(top_k=12, gamma=0.0, keep_seen=True, batch_size=5)
    first = listed(ListMaker(trained, data.raw_item_ids(), keeping, Filters(), CPU).make(users))["u004"]
    assert sorted(first, key=int) == [str(item) for item in range(1, 13)]
    pairs = pa.table({"user_id": ["u004", "u001", "u004", "u004"], "raw_item_id": [first[0], first[1], first[3], "?"]})
    pq.write_table(pairs, tmp_path / "pairs.parquet")
    filters = Filters(denied=str(tmp_path / "pairs.parquet"))
    maker = ListMaker(trained, data.raw_item_ids(), keeping, filters, CPU)
    assert listed(maker.make(users))["u004"] == [first[1], first[2], *first[4:]]


def test_who_has_seen_all_gets_nothing(prepared: Path) -> None:
    data = open_prepared(prepared)
    (users,) = find_users(data, pa.array(["u004"]))
    all_seen = UserLists(**{**vars(users), "seen": Ragged(np.array([0, 12]), np.arange(1, 13))})
    maker = ListMaker(model_of(data.raw_item_ids().to_pylist()), data.raw_item_ids(), LISTS, Filters(), CPU)
    assert len(maker.make(all_seen)) == 0


def test_joined_puts_rows_end_to_end() -> None:
    one, other = Ragged(np.array([0, 2, 2, 3]), np.array([5, 6, 7])), Ragged(np.array([0, 0, 1, 2]), np.array([8, 9]))
    both = joined(one, other)
    assert [row(both, place) for place in range(3)] == [[5, 6], [8], [7, 9]]


def test_users_are_read_by_part_and_by_id(prepared: Path) -> None:
    data = open_prepared(prepared)
    parts = user_parts(data)
    assert [part.number for part in parts] == [0, 1] and sum(part.rows for part in parts) == 31
    assert len({name for part in parts for name in user_ids(part).to_pylist()}) == 31
    found = list(find_users(data, pa.array(["u000", "u002", "nobody"])))
    assert [users.user_ids.to_pylist() for users in found] == [["u000", "u002"]]
    some = read_users(parts[0], data.num_items, columns=["seen_items"])
    assert some.seen.values.tolist() == read_users(parts[0], data.num_items).seen.values.tolist()
    assert len(some) == len(some.items) == len(some.positive) and not some.items.values.size


def test_a_card_tells_what_came_of_the_list(prepared: Path) -> None:
    data = open_prepared(prepared)
    raw_ids = data.raw_item_ids()
    (users,) = find_users(data, pa.array(["u004"]))
    lists = ListSettings(top_k=12, gamma=0.0, keep_seen=False, batch_size=5)
    maker = ListMaker(model_of(raw_ids.to_pylist()), raw_ids, lists, Filters(), CPU)
    (card,) = cards(maker, raw_ids, users)
    items, positive = row(users.items, 0), row(users.is_positive, 0)
    assert positive[-1] is False  # its one item at or after T
    assert card.later_dislikes == [str(items[-1])] and card.later_likes == []
    earlier = before_split(users)
    assert row(earlier.items, 0) == items[:-1] and row(earlier.negative, 0) == row(users.negative, 0)[:-1]
    assert row(earlier.positive, 0) == row(users.positive, 0)
    assert set(row(users.seen, 0)) - set(row(earlier.seen, 0)) == {items[-1]} - set(items[:-1])
    text = card_text(card, {str(items[-1]): "The Last One"})
    assert text.splitlines()[0] == "user u004"
    if items[-1] not in items[:-1]:
        assert "has 0 of 0 later likes and 1 of 1 later dislikes" in text
        assert f"The Last One [{items[-1]}]" in text and "disliked later" in text
