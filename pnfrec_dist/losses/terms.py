"""The interface of a loss term, and the terms of the two sides. L = sum over terms of weight * total / count.

P tokens of a side, D width, U distinct items of a batch.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pnfrec_dist.config.histories import HISTORIES
from pnfrec_dist.config.registry import TERMS
from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings
from pnfrec_dist.data.batches import BatchParts, Sequences, TrainBatch
from pnfrec_dist.errors import InputError

NOTHING_MORE = BatchParts()
LOSS = "loss"
"""The logged name of the whole loss."""
NO_LOSSES = ("users_per_s", "skipped_steps")
"""Names logged beside the loss and its terms, after train/ too."""


@dataclass(frozen=True)
class StepTensors:
    """The input of a term: one rank's part of a step."""

    main_PD: Tensor
    """the main encoder's output"""
    negative_PD: Tensor | None
    """the output of the negative encoder, or of the head for dislikes; None if no term needs it"""
    likes_PD: Tensor | None
    """the output of the further encoder over likes, for history both"""
    vectors_UD: Tensor
    """vectors of batch.items_U"""
    batch: TrainBatch


def encoded(encoders: nn.Module, vectors_UD: Tensor, batch: TrainBatch) -> StepTensors:
    """encoders: a DualEncoder, wrapped or not; vectors_UD: vectors of batch.items_U."""
    main_PD, negative_PD, likes_PD = encoders(vectors_UD, batch)
    return StepTensors(main_PD, negative_PD, likes_PD, vectors_UD, batch)


class Term(ABC):
    """One summand of the loss. Its weight is a setting; its mean is logged as train/<name>."""

    needs: BatchParts = NOTHING_MORE
    """needed parts of the batch; with needs.negative, the model predicts next dislikes"""
    is_recordable: bool = False
    """whether it is right for batches of fixed shapes, whose targets may be padding (Sequences.is_real_T), and nothing
    in it depends on values that the host reads: then a CUDA graph may replay it (training/step_graph.py)"""

    @abstractmethod
    def name(self, encoder: EncoderSettings) -> str:
        """The name in the log."""

    def title(self, encoder: EncoderSettings) -> str:
        """The title in plots."""
        return self.name(encoder)

    @abstractmethod
    def count(self, batch: TrainBatch) -> int | Tensor:
        """Tokens that the total sums over; built-in terms return a tensor for a batch of fixed shapes."""


class DirectTerm(Term):
    """A term that is computed on its own, without a sweep over the catalog."""

    @abstractmethod
    def total(self, tensors: StepTensors, settings: Settings) -> Tensor:
        """Sum over the tokens, differentiable, []."""


@dataclass(frozen=True)
class CrossEntropyTerm(Term):
    """The cross-entropy of one side's next items. Both sides go through one sweep over the catalog (objective.py)."""

    side: Literal["main", "negative", "likes"]
    needs: BatchParts = NOTHING_MORE
    is_recordable = True

    def name(self, encoder: EncoderSettings) -> str:
        """ce_negative, ce_likes, or ce_positive, ce_all, ... by what the main encoder reads; ce_main if it reads
        negatives."""
        reads = encoder.history if self.side == "main" else self.side
        return "ce_main" if (self.side, reads) == ("main", "negative") else f"ce_{reads}"

    def title(self, encoder: EncoderSettings) -> str:
        of_others = {"negative": "dislikes", "likes": "likes (their own encoder)"}
        title = f"CE over {of_others.get(self.side, encoder.history_kind.title)}"
        return f"{title} (main encoder)" if self.name(encoder) == "ce_main" else title

    def sequences(self, batch: TrainBatch) -> Sequences:
        side = {"main": batch.main, "negative": batch.negative, "likes": batch.likes}[self.side]
        assert side is not None
        return side

    def hidden(self, tensors: StepTensors) -> Tensor:
        """[P, D]."""
        of_sides = {"main": tensors.main_PD, "negative": tensors.negative_PD, "likes": tensors.likes_PD}
        hidden_PD = of_sides[self.side]
        assert hidden_PD is not None
        return hidden_PD

    def count(self, batch: TrainBatch) -> int | Tensor:
        return self.sequences(batch).num_targets


AnyTerm = CrossEntropyTerm | DirectTerm
CE_MAIN = CrossEntropyTerm("main")
CE_NEGATIVE = CrossEntropyTerm("negative", BatchParts(negative=True))
CE_LIKES = CrossEntropyTerm("likes", BatchParts(likes=True))


def terms_of(loss: LossSettings) -> dict[str, Term]:
    """The terms with a weight above 0, by name. Raises InputError for one that cannot be imported or is no term."""
    return {name: TERMS.load(name) for name in loss.weights}


def logged_names(terms: dict[str, Term], encoder: EncoderSettings) -> dict[str, str]:
    """Term -> its name in the log. Raises InputError for a name that MLflow does not take or that is there already."""
    found: dict[str, str] = {}
    for name, term in terms.items():
        with TERMS.own_code(name, "cannot be named"):
            found[name] = str(term.name(encoder))
    TERMS.require_names([LOSS, *NO_LOSSES, *found.values()])
    return found


def needed_parts(loss: LossSettings) -> BatchParts:
    """The parts of a batch that the terms need; `negative` also means a model that predicts next dislikes."""
    terms = terms_of(loss).values()
    return BatchParts(
        negative=any(term.needs.negative for term in terms),
        contrast=any(term.needs.contrast for term in terms),
        likes=any(term.needs.likes for term in terms),
    )


def term_title(name: str, own: Iterable[str] = ()) -> str:
    """A term's title, from its logged name; for other names the name itself.

    own: terms of the settings; those that can no longer be imported are left out.
    """
    for term in _importable((*TERMS.known, *own)):
        for history in HISTORIES:
            encoder = EncoderSettings(history=history)
            if term.name(encoder) == name:
                return term.title(encoder)
    return name


def _importable(names: Iterable[str]) -> Iterator[Term]:
    for name in names:
        with contextlib.suppress(InputError):
            yield TERMS.load(name)
