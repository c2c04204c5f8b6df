"""The item table: one row per item, the input embedding and the tied output of all encoders.

V = N + 1 rows, S of them on this rank, D width, U distinct items of a batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pnfrec_dist.data.schema import PAD_ID
from pnfrec_dist.distributed import World

DRAW_ROWS = 1 << 16


class ItemTable(nn.Module):
    """E, [V, D]; row = item id. Row 0 is padding: always zero, not a class of the softmax, no gradient.

    Replicated: every rank holds all rows, and the caller sums gradients over ranks. Sharded: rank r of `shards` holds
    the rows first_row..end_row - 1, their gradients and their optimizer state.
    """

    def __init__(self, num_items: int, width: int, shards: World | None = None) -> None:
        super().__init__()
        self.shards = shards or World()
        self.num_items = num_items
        self.bounds = [(num_items + 1) * r // self.shards.size for r in range(self.shards.size + 1)]
        self.first_row, self.end_row = self.bounds[self.shards.rank], self.bounds[self.shards.rank + 1]
        self.weight = nn.Parameter(torch.zeros(self.end_row - self.first_row, width))
        self._looked_up: list[tuple[Tensor | None, Tensor]] = []
        """rows (None: all) and gradients that collect_gradients will add"""
        self._to_add: list[Callable[[Tensor], None]] = []
        """what add_in_backward was given"""

    @property
    def is_sharded(self) -> bool:
        return self.shards.size > 1

    @torch.no_grad()
    def initialize(self, std: float, generator: torch.Generator) -> None:
        """normal(0, std), the same rows for any sharding; drawn block by block, so that no rank holds all rows."""
        for start in range(0, self.num_items + 1, DRAW_ROWS):
            end = min(start + DRAW_ROWS, self.num_items + 1)
            drawn = torch.empty(end - start, self.weight.shape[1]).normal_(0.0, std, generator=generator)
            first, last = max(start, self.first_row), min(end, self.end_row)
            if first < last:
                self.weight[first - self.first_row : last - self.first_row] = drawn[first - start : last - start]
        if self.first_row <= PAD_ID < self.end_row:
            self.weight[PAD_ID] = 0.0

    def lookup(self, items_U: Tensor | None) -> Tensor:
        """Rows of distinct, ascending item ids, [U, D], from all ranks; PAD_ID gives zeros. With one rank, ids may
        repeat in any order; None: all rows.

        The backward pass only stores the gradients of these rows: call collect_gradients after it.
        """
        return _Lookup.apply(items_U, self.weight, self)

    def add_in_backward(self, add: Callable[[Tensor], None]) -> None:
        """Calls add(weight.grad) at the backward of `lookup`, the last of the backward pass, or at collect_gradients.

        Work for the GPU that waits until then runs while the ranks sum the encoders' gradients.
        """
        self._to_add.append(add)

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Adds all gradients of the backward pass to weight.grad, in place, so that there is only one gradient tensor
        of the table's size."""
        self._add_waiting()
        for rows, gradients in self._looked_up:
            if rows is None:
                self._gradient().add_(gradients)[PAD_ID].zero_()
            else:
                add_rows(self._gradient(), rows, gradients)
        self._looked_up.clear()

    @torch.no_grad()
    def _add_waiting(self) -> None:
        for add in self._to_add:
            add(self._gradient())
        self._to_add.clear()

    def _gradient(self) -> Tensor:
        """weight.grad, zeros if there is none yet."""
        if self.weight.grad is None:
            self.weight.grad = torch.zeros_like(self.weight)
        return self.weight.grad


class _Lookup(torch.autograd.Function):
    """Sends ids to the ranks that hold the rows and gets the rows back; backward sends the gradients to those ranks."""

    @staticmethod
    def forward(ctx: Any, items_U: Tensor | None, weight_SD: Tensor, table: ItemTable) -> Tensor:
        shards = table.shards
        if items_U is None:
            ctx.table, ctx.rows = table, None
            return weight_SD.detach()
        asked = answered = [len(items_U)]
        if table.is_sharded:
            bounds = torch.tensor(table.bounds, device=items_U.device)
            asked = torch.searchsorted(items_U, bounds).diff().tolist()
            counts = torch.tensor(asked, device=items_U.device)  # NCCL only sends tensors of a GPU
            answered = shards.exchange(counts, [1] * shards.size, [1] * shards.size).tolist()
        rows = shards.exchange(items_U, asked, answered) - table.first_row
        ctx.table, ctx.rows, ctx.asked, ctx.answered = table, rows, asked, answered
        return shards.exchange(weight_SD[rows], answered, asked)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.table._add_waiting()
        if ctx.rows is None:
            ctx.table._looked_up.append((None, grad_outputs[0]))
            return None, None, None
        gradients = ctx.table.shards.exchange(grad_outputs[0], ctx.asked, ctx.answered)
        is_padding = ctx.rows == PAD_ID - ctx.table.first_row
        ctx.table._looked_up.append((ctx.rows, gradients.masked_fill(is_padding[:, None], 0.0)))
        return None, None, None


def add_rows(table_VD: Tensor, ids: Tensor, rows: Tensor) -> None:
    """table_VD[ids[i]] += rows[i]; ids may repeat. The order of the sums is the same in every run."""
    if table_VD.is_cuda:
        table_VD.index_put_((ids,), rows.to(table_VD.dtype), accumulate=True)
    else:
        table_VD.index_add_(0, ids, rows.to(table_VD.dtype))


def take(vectors_UD: Tensor, places: Tensor) -> Tensor:
    """vectors_UD[places], for any shape of places. Unlike indexing, its backward sums equal places in parallel."""
    return F.embedding(places, vectors_UD)
