"""Makes lists for the users of a prepared data set. The model may have been trained on an older state of the data.

B users of a batch, K list length, V = N + 1 of the model's catalog.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch

from pnfrec_dist.config.inference_settings import RecommendSettings
from pnfrec_dist.data.ragged import Ragged, signed
from pnfrec_dist.data.raw_ids import places
from pnfrec_dist.data.schema import PAD_ID
from pnfrec_dist.data.user_histories import UserLists
from pnfrec_dist.inference.artifact import Exported
from pnfrec_dist.inference.candidates import Candidates
from pnfrec_dist.inference.recommender import Recommender, Users

LIST_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string()),
        pa.field("rank", pa.int32()),
        pa.field("raw_item_id", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("is_popular", pa.bool_()),
    ]
)
"""rank starts at 1; is_popular: the user has no known like, and the scores are popularity scores."""
BATCH_SIZE = {"cpu": 256, "cuda": 2048}


@dataclass(frozen=True)
class ListSettings:
    """What the lists look like."""

    top_k: int
    gamma: float
    keep_seen: bool
    batch_size: int | None = None
    """users ranked at once; None: BATCH_SIZE"""

    @staticmethod
    def of(settings: RecommendSettings, trained: Exported) -> "ListSettings":
        gamma = trained.gamma(settings.gamma)
        return ListSettings(settings.top_k, gamma, settings.keep_seen, settings.batch_size)


@dataclass(frozen=True)
class Filters:
    """Items that lists leave out."""

    is_hidden_V: np.ndarray | None = None
    """items that are hidden from all users"""
    denied: str = ""
    """Parquet file of pairs (user_id, raw_item_id) that are not listed; empty: none"""


class ListMaker:
    """Ranks the model's catalog for users whose histories use the data set's item ids."""

    def __init__(
        self,
        trained: Exported,
        data_raw_ids: pa.Array,
        settings: ListSettings,
        filters: Filters,
        device: torch.device,
        candidates: Candidates | None = None,
    ) -> None:
        """data_raw_ids: raw ids of the data set's catalog, starting at item 1; candidates: of an index, on a CPU."""
        self.settings, self.filters = settings, filters
        self.history_kind = trained.settings.encoder.history_kind
        self.reads = (*self.history_kind.columns, "negative_items", "seen_items")
        """lists of a user that `make` needs"""
        self.raw_ids = pa.array(trained.raw_ids, pa.string())
        self.model_item_of = model_items(data_raw_ids, self.raw_ids)
        self.batch_size = settings.batch_size or BATCH_SIZE[device.type]
        model = trained.model.to(device).eval()
        self.recommender = Recommender(model, trained.num_positive_V, filters.is_hidden_V, candidates)

    def make(self, users: UserLists) -> pa.Table:
        """A table of LIST_SCHEMA: at most top_k rows per user, in the order of `users`."""
        known = self._known(users)
        size = self.batch_size
        tables = [
            self._batch(users, known, np.arange(n, min(n + size, len(users)))) for n in range(0, len(users), size)
        ]
        return pa.concat_tables([LIST_SCHEMA.empty_table(), *tables])

    def vectors(self, users: UserLists) -> torch.Tensor:
        """What is multiplied with item vectors, of the users with a history, [B, D]."""
        known = self._known(users)
        rows = np.flatnonzero(known.history.lengths)
        with torch.inference_mode():
            return self.recommender.vectors(known, rows, self.settings.gamma)

    def _known(self, users: UserLists) -> Users:
        """The users' histories in the model's item ids, and what is not listed for them."""
        read = self.history_kind.choose(positive_items=users.positive, negative_items=users.negative, items=users.items)
        if self.history_kind.holds_negatives:
            read = signed(read, users.is_positive)
        sides = [read, users.negative, users.seen]
        history, negative, seen = (known_items(side, self.model_item_of) for side in sides)
        if self.settings.keep_seen:
            seen = Ragged.of([[]] * len(users))
        if self.filters.denied:
            seen = joined(seen, self._denied(users.user_ids))
        return Users(history, negative, seen)

    def _batch(self, users: UserLists, known: Users, rows: np.ndarray) -> pa.Table:
        length = min(self.settings.top_k, len(self.raw_ids))
        ranking = self.recommender.rank(known, rows, length, self.settings.gamma)
        items_BK, scores_BK = ranking.items_BK.cpu().numpy(), ranking.scores_BK.float().cpu().numpy()
        place, at = np.nonzero(items_BK != PAD_ID)
        columns = [
            users.user_ids.take(pa.array(rows[place])),
            pa.array(at + 1, pa.int32()),
            self.raw_ids.take(pa.array(items_BK[place, at] - 1)),
            pa.array(scores_BK[place, at]),
            pa.array(known.history.lengths[rows[place]] == 0),
        ]
        return pa.table(columns, schema=LIST_SCHEMA)

    def _denied(self, user_ids: pa.Array) -> Ragged:
        """The denied items of each user."""
        pairs = ds.dataset(self.filters.denied).to_table(filter=ds.field("user_id").isin(user_ids))
        user = places(pairs["user_id"].combine_chunks(), user_ids)
        item = places(pairs["raw_item_id"].combine_chunks(), self.raw_ids) + 1
        user, item = user[item != PAD_ID], item[item != PAD_ID]
        order = np.argsort(user, kind="stable")
        offsets = np.searchsorted(user[order], np.arange(len(user_ids) + 1))
        return Ragged(offsets, item[order])


def model_items(data_raw_ids: pa.Array, model_raw_ids: pa.Array) -> np.ndarray | None:
    """The model's id of each item of the data set, [num_items + 1]; PAD_ID if unknown. None if all ids are equal."""
    if data_raw_ids.equals(model_raw_ids):
        return None
    return np.concatenate([[PAD_ID], places(data_raw_ids, model_raw_ids) + 1])


def known_items(lists: Ragged, model_item_of: np.ndarray | None) -> Ragged:
    """The lists in the model's item ids, signs kept, without items that the model does not know.

    model_item_of: see model_items.
    """
    if model_item_of is None:
        return lists
    items = np.sign(lists.values) * model_item_of[np.abs(lists.values)]
    is_known = items != PAD_ID
    before = np.concatenate([[0], np.cumsum(is_known)])
    return Ragged(before[lists.offsets], items[is_known])


def joined(first: Ragged, second: Ragged) -> Ragged:
    """Joins the two lists of each row."""
    lengths = first.lengths + second.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.empty(offsets[-1], dtype=np.int64)
    for lists, starts in ((first, offsets[:-1]), (second, offsets[:-1] + first.lengths)):
        places = np.arange(len(lists.values)) + np.repeat(starts - lists.offsets[:-1], lists.lengths)
        values[places] = lists.values
    return Ragged(offsets, values)
