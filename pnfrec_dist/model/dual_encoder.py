"""The model: one item table, a main encoder, and a negative encoder if the loss needs it (paper, section 3).

With a signed history, a second head of the main encoder replaces the negative encoder.

B users, P tokens, U distinct items of a batch, D width, N items.
"""

import torch
from torch import Tensor, nn

from pnfrec_dist.config.settings import EncoderSettings
from pnfrec_dist.data.batches import HistoryBatch, TrainBatch
from pnfrec_dist.distributed import World
from pnfrec_dist.model.encoder import INIT_STD, Encoder, initialize
from pnfrec_dist.model.few_shapes import Linear
from pnfrec_dist.model.item_table import ItemTable, take


class DualEncoder(nn.Module):
    """The main encoder over S^p (or S) and the negative encoder over S^n, each with its own positions. Data-parallel
    training replicates them on every rank. If the main encoder reads signs, there is no negative encoder but a linear
    head: its output for a token scores the next dislike, as the token's hidden state scores the next like."""

    def __init__(self, encoder: EncoderSettings, *, with_negative: bool) -> None:
        super().__init__()
        has_head = with_negative and encoder.history_kind.reads_signs
        self.main = Encoder(encoder)
        self.negative = Encoder(encoder) if with_negative and not has_head else None
        self.dislike_head = Linear(encoder.hidden_size, encoder.hidden_size) if has_head else None

    @property
    def predicts_dislikes(self) -> bool:
        return self.negative is not None or self.dislike_head is not None

    def forward(self, vectors_UD: Tensor, batch: TrainBatch) -> tuple[Tensor, Tensor | None]:
        """Hidden states of both sides' tokens, [P, D] each; None for a side that the model does not have.

        vectors_UD: vectors of batch.items_U.
        """
        main_PD = self.main(take(vectors_UD, batch.main.inputs_P), batch.main.groups, batch.main.is_disliked_P)
        if self.dislike_head is not None:
            return main_PD, self.dislike_head(main_PD)
        if self.negative is None or batch.negative is None:
            return main_PD, None
        return main_PD, self.negative(take(vectors_UD, batch.negative.inputs_P), batch.negative.groups)


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
        self.item_table = ItemTable(num_items, encoder.hidden_size, shards)
        self.encoders = DualEncoder(encoder, with_negative=with_negative)
        self.item_table.initialize(INIT_STD, generator)
        initialize(self.encoders, generator)

    def last_hidden(self, batch: HistoryBatch) -> Tensor:
        """The main encoder's output at each user's newest item, [B, D], which scores the catalog."""
        return self._last(self.encoders.main, batch)

    def last_negative_hidden(self, batch: HistoryBatch) -> Tensor:
        """What scores the next dislike, [B, D]. batch: of the negatives, or of what the main encoder reads if it has a
        head for dislikes."""
        if self.encoders.dislike_head is not None:
            return self.encoders.dislike_head(self.last_hidden(batch))
        assert self.encoders.negative is not None
        return self._last(self.encoders.negative, batch)

    def _last(self, encoder: Encoder, batch: HistoryBatch) -> Tensor:
        vectors_UD = self.item_table.lookup(batch.items_U)
        return encoder(take(vectors_UD, batch.inputs_P), batch.groups, batch.is_disliked_P)[batch.last_B]
