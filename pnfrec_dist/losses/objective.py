"""The loss from settings, L = CE_p + alpha * CE_n + beta * L_c + ..., as this rank's part of the global loss.

T real targets of both sides, J terms.
"""

import torch
from torch import Tensor

from pnfrec_dist.config.registry import CROSS_ENTROPIES, TERMS
from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.batches import Sequences, TrainBatch
from pnfrec_dist.errors import require
from pnfrec_dist.losses.catalog_loss import CatalogLoss, Samples, Targets
from pnfrec_dist.losses.terms import (
    LOSS,
    CrossEntropyTerm,
    DirectTerm,
    StepTensors,
    Term,
    logged_names,
    needed_parts,
    terms_of,
)
from pnfrec_dist.model.item_table import ItemTable, take


class Objective:
    """The terms, their weights, and their cross-entropy. Terms are in the order of LossSettings.weights."""

    def __init__(self, settings: Settings) -> None:
        """Raises InputError for names that cannot be imported, for settings that do not fit a loss, and for names that
        cannot be logged."""
        self.settings = settings
        self.cross_entropy: CatalogLoss = CROSS_ENTROPIES.load(settings.loss.cross_entropy)
        self.cross_entropy.require(settings)
        self.terms: dict[str, Term] = terms_of(settings.loss)
        self.weights_J = torch.tensor(list(settings.loss.weights.values()), dtype=torch.float64)
        self._weights_on = {self.weights_J.device: self.weights_J}
        self.parts = needed_parts(settings.loss)
        self.logged_names = logged_names(self.terms, settings.encoder)
        """term -> its name in MLflow, after train/"""

    def counts(self, batch: TrainBatch) -> Tensor:
        """Number of tokens of each term in this batch, [J]; on the device for a batch of fixed shapes."""
        counts = [term.count(batch) for term in self.terms.values()]
        return torch.stack([count if isinstance(count, Tensor) else torch.tensor(count) for count in counts])

    def weights_on(self, device: torch.device) -> Tensor:
        """weights_J on a device; copied once, because a recorded step copies nothing from the host."""
        if device not in self._weights_on:
            self._weights_on[device] = self.weights_J.to(device)
        return self._weights_on[device]

    def loss(self, tensors: StepTensors, table: ItemTable, weights_J: Tensor) -> tuple[Tensor, Tensor]:
        """(sum over terms of weight * total, the totals [J] without gradient) over this rank's users.

        weights_J: weight of one token of each term: the term's weight divided by its count over all ranks.
        """
        places = {name: place for place, name in enumerate(self.terms)}
        sides = {name: term for name, term in self.terms.items() if isinstance(term, CrossEntropyTerm)}
        sequences = [term.sequences(tensors.batch) for term in sides.values()]
        weights_T = torch.cat(
            [
                _masked(weights_J[places[name]].expand(len(own.targets_T)), own)
                for name, own in zip(sides, sequences, strict=True)
            ]
        )
        loss, loss_T = self.cross_entropy(self._targets(tensors, list(sides.values()), weights_T), table, self.settings)
        totals_J = loss.new_zeros(len(self.terms))
        sizes = [len(own.targets_T) for own in sequences]
        for name, own, losses_T in zip(sides, sequences, loss_T.split(sizes), strict=True):
            totals_J[places[name]] = _masked(losses_T, own).sum()
        for name, term in self.terms.items():
            if isinstance(term, DirectTerm):
                total = term.total(tensors, self.settings)
                require(
                    isinstance(total, Tensor) and total.ndim == 0,
                    TERMS.setting,
                    name,
                    "a term whose total is a 0-d tensor",
                )
                totals_J[places[name]] = total.detach()
                loss = loss + weights_J[places[name]] * total
        return loss, totals_J

    def _targets(self, tensors: StepTensors, sides: list[CrossEntropyTerm], weights_T: Tensor) -> Targets:
        """The targets of all sides together, for one sweep over the catalog."""
        batch = tensors.batch
        sequences = [side.sequences(batch) for side in sides]
        hidden = [side.hidden(tensors) for side in sides]
        hidden_TD = torch.cat([h_PD.index_select(0, own.places_T) for h_PD, own in zip(hidden, sequences, strict=True)])
        targets_T = torch.cat([own.targets_T for own in sequences])
        if not self.cross_entropy.samples_items:
            return Targets(hidden_TD, targets_T, weights_T, bounds=_bounds(sequences))
        places = [own.target_places_T for own in sequences if own.target_places_T is not None]
        assert batch.sampled is not None and len(places) == len(sequences)
        target_TD, sampled_KD = (take(tensors.vectors_UD, at) for at in (torch.cat(places), batch.sampled.places_K))
        return Targets(hidden_TD, targets_T, weights_T, Samples(target_TD, sampled_KD, batch.sampled))

    def means(self, totals: dict[str, float], counts: dict[str, float]) -> dict[str, float]:
        """train/loss and its terms as means over tokens. totals, counts: term -> sum over steps and ranks."""
        totals_J, counts_J = (torch.tensor([sums.get(name, 0.0) for name in self.terms]) for sums in (totals, counts))
        means_J = totals_J / counts_J.clamp(min=1)
        of_terms = dict(zip(self.logged_names.values(), means_J.tolist(), strict=True))
        return {
            f"train/{LOSS}": float((self.weights_J * means_J).sum()),
            **{f"train/{name}": mean for name, mean in of_terms.items()},
        }


def _masked(values_T: Tensor, sequences: Sequences) -> Tensor:
    """Zero where a target is padding."""
    return values_T if sequences.is_real_T is None else values_T.masked_fill(~sequences.is_real_T, 0.0)


def _bounds(sequences: list[Sequences]) -> Tensor | None:
    """Targets.bounds: the first side's padding is before its targets, that of other sides behind them."""
    counts = [torch.count_nonzero(own.is_real_T) for own in sequences if own.is_real_T is not None]
    if not counts:
        return None
    rooms = [len(own.targets_T) for own in sequences]
    end = sum(rooms) - rooms[-1] + counts[-1] if len(rooms) > 1 else torch.full_like(counts[0], rooms[0])
    return torch.stack([rooms[0] - counts[0], end])
