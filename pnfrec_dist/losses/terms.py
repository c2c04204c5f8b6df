"""The interface of a loss term, and the terms of the two sides. L = sum over terms of weight * total / count.

P tokens of a side, D width, U distinct items of a batch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pnfrec_dist.config.histories import HISTORIES
from pnfrec_dist.config.registry import TERMS
from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings
from pnfrec_dist.data.batches import BatchParts, Sequences, TrainBatch
from pnfrec_dist.errors import require

NOTHING_MORE = BatchParts()


@dataclass(frozen=True)
class StepTensors:
    """The input of a term: one rank's part of a step."""

    main_PD: Tensor
    """the main encoder's output"""
    negative_PD: Tensor | None
    """the negative encoder's output; None if no term needs it"""
    vectors_UD: Tensor
    """vectors of batch.items_U"""
    batch: TrainBatch


def encoded(encoders: nn.Module, vectors_UD: Tensor, batch: TrainBatch) -> StepTensors:
    """encoders: a DualEncoder, wrapped or not; vectors_UD: vectors of batch.items_U."""
    main_PD, negative_PD = encoders(vectors_UD, batch)
    return StepTensors(main_PD, negative_PD, vectors_UD, batch)


class Term(ABC):
    """One summand of the loss. Its weight is a setting; its mean is logged as train/<name>."""

    needs: BatchParts = NOTHING_MORE
    """needed parts of the batch; with needs.negative, the model has a negative encoder"""

    @abstractmethod
    def name(self, encoder: EncoderSettings) -> str:
        """The name in the log."""

    def title(self, encoder: EncoderSettings) -> str:
        """The title in plots."""
        return self.name(encoder)

    @abstractmethod
    def count(self, batch: TrainBatch) -> int:
        """Tokens that the total sums over."""


class DirectTerm(Term):
    """A term that is computed on its own, without a sweep over the catalog."""

    @abstractmethod
    def total(self, tensors: StepTensors, settings: Settings) -> Tensor:
        """Sum over the tokens, differentiable, []."""


@dataclass(frozen=True)
class CrossEntropyTerm(Term):
    """The cross-entropy of one side's next items. Both sides go through one sweep over the catalog (objective.py)."""

    side: Literal["main", "negative"]
    needs: BatchParts = NOTHING_MORE

    def name(self, encoder: EncoderSettings) -> str:
        """ce_negative, or ce_positive, ce_all, ... by what the main encoder reads."""
        return f"ce_{encoder.history if self.side == 'main' else self.side}"

    def title(self, encoder: EncoderSettings) -> str:
        return f"CE over {encoder.history_kind.title if self.side == 'main' else 'dislikes'}"

    def sequences(self, batch: TrainBatch) -> Sequences:
        side = batch.main if self.side == "main" else batch.negative
        assert side is not None
        return side

    def hidden(self, tensors: StepTensors) -> Tensor:
        """[P, D]."""
        hidden_PD = tensors.main_PD if self.side == "main" else tensors.negative_PD
        assert hidden_PD is not None
        return hidden_PD

    def count(self, batch: TrainBatch) -> int:
        return len(self.sequences(batch).targets_T)


CE_MAIN = CrossEntropyTerm("main")
CE_NEGATIVE = CrossEntropyTerm("negative", BatchParts(negative=True))


def terms_of(loss: LossSettings) -> dict[str, Term]:
    """The terms with a weight above 0, by name. Raises InputError for one that cannot be imported."""
    found: dict[str, Term] = {}
    for name in loss.weights:
        term = TERMS.load(name)
        require(isinstance(term, CrossEntropyTerm | DirectTerm), TERMS.setting, name, "an object of DirectTerm")
        found[name] = term
    return found


def needed_parts(loss: LossSettings) -> BatchParts:
    """The parts of a batch that the terms need; `negative` also means a negative encoder."""
    terms = terms_of(loss).values()
    return BatchParts(
        negative=any(term.needs.negative for term in terms), contrast=any(term.needs.contrast for term in terms)
    )


def term_title(name: str) -> str:
    """A term's title, from its logged name; for other names the name itself."""
    for history in HISTORIES:
        encoder = EncoderSettings(history=history)
        for known in TERMS.known:
            term: Term = TERMS.load(known)
            if term.name(encoder) == name:
                return term.title(encoder)
    return name
