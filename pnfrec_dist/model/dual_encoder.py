"""The model: one item table, a main encoder, and a negative encoder if the loss needs it (paper, section 3).

With a signed history, a second head of the main encoder replaces the negative encoder.

B users, P tokens, U distinct items of a batch, D width, N items.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnfrec_dist.config.settings import EncoderSettings
from pnfrec_dist.data.batches import Groups, HistoryBatch, TrainBatch
from pnfrec_dist.distributed import World
from pnfrec_dist.model.encoder import INIT_STD, Encoder, initialize
from pnfrec_dist.model.few_shapes import Linear
from pnfrec_dist.model.item_table import ItemTable, take
from pnfrec_dist.model.likes_order import likes_first
from pnfrec_dist.model.score_weights import ScoreParts, ScoreWeights


class DualEncoder(nn.Module):
    """The encoders, each with its own positions. Data-parallel training replicates them on every rank.

    main: over S^p, S, or S with signs. negative: over S^n. If the main encoder reads signs, there is no negative
    encoder but a linear head: its output for a token scores the next dislike, as the token's hidden state scores the
    next like. likes: a further encoder, over the likes among what the main encoder reads. Then each of the two has half
    of the item vectors for itself (likes the first one), and outputs are 0 in the other's half. So the two scores of an
    item are those of two models without a common weight, and their weighted sum is one dot product.
    """

    def __init__(self, encoder: EncoderSettings, *, with_negative: bool) -> None:
        super().__init__()
        kind, self.width = encoder.history_kind, encoder.hidden_size
        has_head = with_negative and kind.reads_signs
        self.main = Encoder(encoder)
        self.negative = Encoder(encoder) if with_negative and not has_head else None
        self.dislike_head = Linear(self.width, self.width) if has_head else None
        of_likes = replace(encoder, history="positive", max_length=encoder.positions)
        self.likes = Encoder(of_likes) if kind.reads_likes_too else None
        self.weights = ScoreWeights()
        """those of the settings, or found on validation users; they change what recommends, not what is trained"""

    @property
    def predicts_dislikes(self) -> bool:
        return self.negative is not None or self.dislike_head is not None

    def forward(self, vectors_UD: Tensor, batch: TrainBatch) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Hidden states of the main side's, the negative side's and the likes' tokens, [P, D] each; None for a side
        that the model does not have.

        vectors_UD: vectors of batch.items_U.
        """
        main = batch.main
        main_PD, likes_PD, _ = self._states(take(vectors_UD, main.inputs_P), main.groups, main.is_disliked_P)
        negative_PD = None
        if self.dislike_head is not None:
            negative_PD = self._of_head(main_PD)
        elif self.negative is not None and batch.negative is not None:
            negative_PD = self.negative(take(vectors_UD, batch.negative.inputs_P), batch.negative.groups)
        return main_PD, negative_PD, likes_PD

    def parts(self, x_PD: Tensor, groups: Groups, is_disliked_P: Tensor | None, *, with_dislikes: bool) -> ScoreParts:
        """What scores the next like at each token of the main side, in its parts. with_dislikes: also what the head for
        dislikes gives, if the model has one."""
        main_PD, likes_PD, has_likes_P = self._states(x_PD, groups, is_disliked_P)
        has_head = with_dislikes and self.dislike_head is not None
        return ScoreParts(main_PD, likes_PD, has_likes_P, self._of_head(main_PD) if has_head else None)

    def liking(self, x_PD: Tensor, groups: Groups, is_disliked_P: Tensor | None, gamma: float = 0.0) -> Tensor:
        """What scores the next like at each token of the main side, minus gamma times what the head for dislikes gives,
        [P, D]. Without a head, gamma is ignored."""
        parts = self.parts(x_PD, groups, is_disliked_P, with_dislikes=gamma != 0)
        return parts.weighted(replace(self.weights, gamma=gamma))

    def disliking(self, x_PD: Tensor, groups: Groups, is_disliked_P: Tensor | None) -> Tensor:
        """What the head gives: scores of the next dislike at each token of the main side, [P, D]."""
        return self._of_head(self._states(x_PD, groups, is_disliked_P)[0])

    def _states(
        self, x_PD: Tensor, groups: Groups, is_disliked_P: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The main encoder's output, that of the likes' encoder at the newest like (0 before the first one), and
        whether there is such a like."""
        if self.likes is None:
            return self.main(x_PD, groups, is_disliked_P), None, None
        assert is_disliked_P is not None
        main_PD = self.main(x_PD[:, self.width :], groups, is_disliked_P)
        order_P, newest_P = likes_first(is_disliked_P, groups)
        likes_PD = self.likes(x_PD[:, : self.width].index_select(0, order_P), groups)
        has_likes_P = newest_P >= 0
        likes_PD = likes_PD.index_select(0, newest_P.clamp(min=0)).masked_fill(~has_likes_P[:, None], 0.0)
        return F.pad(main_PD, (self.width, 0)), F.pad(likes_PD, (0, self.width)), has_likes_P

    def _of_head(self, main_PD: Tensor) -> Tensor:
        assert self.dislike_head is not None
        if self.likes is None:
            return self.dislike_head(main_PD)
        return F.pad(self.dislike_head(main_PD[:, self.width :]), (self.width, 0))


class PNFRec(nn.Module):
    """The item table, shared by both encoders, and the encoders. Inference uses the main encoder.

    All weights are drawn from `generator`.
    """

    def __init__(
        self,
        num_items: int,
        encoder: EncoderSettings,
        generator: torch.Generator,
        *,
        with_negative: bool,
        shards: World | None = None,
    ) -> None:
        """with_negative: whether next dislikes are predicted, which some terms of the loss need (losses/terms.py);
        shards: the ranks that share the rows of the item table; None: each rank holds all."""
        super().__init__()
        self.max_length = encoder.positions
        self.item_table = ItemTable(num_items, encoder.vector_size, shards)
        self.encoders = DualEncoder(encoder, with_negative=with_negative)
        self.item_table.initialize(INIT_STD, generator)
        initialize(self.encoders, generator)

    def last_hidden(self, batch: HistoryBatch, gamma: float = 0.0) -> Tensor:
        """The main encoder's output at each user's newest item, which scores the catalog, minus gamma times that of its
        head for dislikes, [B, D]. A model without such a head ignores gamma: its negative encoder reads another
        batch."""
        return self._last(partial(self.encoders.liking, gamma=gamma), batch)

    def last_parts(self, batch: HistoryBatch) -> ScoreParts:
        """The parts of last_hidden, [B, D] each."""
        parts = self.encoders.parts(self._inputs(batch), batch.groups, batch.is_disliked_P, with_dislikes=True)
        return parts.rows(batch.last_B)

    def last_negative_hidden(self, batch: HistoryBatch) -> Tensor:
        """What scores the next dislike, [B, D]. batch: of the negatives, or of what the main encoder reads if it has a
        head for dislikes."""
        if self.encoders.dislike_head is not None:
            return self._last(self.encoders.disliking, batch)
        assert self.encoders.negative is not None
        return self._last(self.encoders.negative, batch)

    def _last(self, encoder: Callable[..., Tensor], batch: HistoryBatch) -> Tensor:
        return encoder(self._inputs(batch), batch.groups, batch.is_disliked_P)[batch.last_B]

    def _inputs(self, batch: HistoryBatch) -> Tensor:
        return take(self.item_table.lookup(batch.items_U), batch.inputs_P)
