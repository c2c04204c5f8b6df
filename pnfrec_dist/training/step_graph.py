"""The training step of one GPU, recorded once and replayed: launching its kernels takes no time of the processor's.

A step has some 1,000 small kernels, and a processor needs several times as long to launch them as a GPU to run them.
Almost all batches fit the same shapes (data/slots.py), so one graph serves them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from pnfrec_dist.config.settings import Settings
from pnfrec_dist.data.device_batches import DeviceBatches
from pnfrec_dist.data.prepared import TrainData
from pnfrec_dist.data.slots import plan_slots
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError, first_line
from pnfrec_dist.losses.objective import Objective
from pnfrec_dist.losses.terms import terms_of
from pnfrec_dist.model.dual_encoder import PNFRec
from pnfrec_dist.model.encoder import block_class
from pnfrec_dist.training.step import Requests, StepSums, compute_gradients, reading, step_if_finite, step_sums


def may_record(settings: Settings) -> bool:
    """Whether a step may be recorded: the loss is exact, train.accumulation is 1, and the block and all terms say that
    they are recordable."""
    if not settings.train.cuda_graph or settings.train.accumulation > 1 or settings.loss.cross_entropy != "exact":
        return False
    terms = terms_of(settings.loss).values()
    return block_class(settings.encoder).is_recordable and all(term.is_recordable for term in terms)


def can_record(settings: Settings, world: World) -> bool:
    """Whether a step is a graph here: on one GPU."""
    return may_record(settings) and world.is_alone and world.device.type == "cuda"


def make_optimizer(model: PNFRec, settings: Settings, world: World) -> torch.optim.Adam:
    """Adam over all parameters."""
    is_recorded = can_record(settings, world)
    return torch.optim.Adam(model.parameters(), lr=settings.optimizer.lr, fused=True, capturable=is_recorded)


@dataclass
class StepGraph:
    """Steps on batches that DeviceBatches makes. The first step runs as usual, which also compiles kernels; the second
    one is recorded. On a CPU, every step runs as usual."""

    model: PNFRec
    optimizer: Optimizer
    objective: Objective
    world: World
    batches: DeviceBatches
    _rows_SB: Tensor | None = None
    """the input of the graph"""
    _results: Tensor | None = None
    """its output: totals, not finite, counts"""
    _graph: "torch.cuda.CUDAGraph | None" = None
    _is_warm: bool = False
    """whether a step has run as usual"""

    @classmethod
    def of(
        cls, model: PNFRec, optimizer: Optimizer, objective: Objective, world: World, data: TrainData
    ) -> "StepGraph | None":
        """None if the steps of this training cannot be recorded."""
        settings = objective.settings
        if not can_record(settings, world):
            return None
        plan = plan_slots(data, settings.encoder, objective.parts, settings.train.batch_size)
        num_items = model.item_table.num_items
        batches = DeviceBatches.of(data, plan, settings.encoder, objective.parts, num_items, world.device)
        return cls(model, optimizer, objective, world, batches)

    def step(self, rows_SB: Tensor, requests: Requests) -> StepSums:
        """As train_step. rows_SB: users in their slots (SlotPlan.place), on the host."""
        if self._rows_SB is None:
            self._rows_SB = rows_SB.to(self.world.device)
        else:
            self._rows_SB.copy_(rows_SB, non_blocking=True)
        if not self._rows_SB.is_cuda:
            self._results = self._run()
        elif not self._is_warm:
            self._run_aside()
            self._is_warm = True
        else:
            if self._graph is None:
                self._graph = self._recorded()
            self._graph.replay()
        assert self._results is not None
        num_terms = len(self.objective.terms)
        values = reading(self._results)()
        return step_sums(self.objective, values[:num_terms], values[num_terms + 1 :], values[num_terms], requests)

    def _run(self) -> Tensor:
        assert self._rows_SB is not None
        batch = self.batches.batch(self._rows_SB)
        counts_J = self.objective.counts(batch)
        sums = compute_gradients(
            self.model, self.model.encoders, self.optimizer, [batch], self.objective, self.world, counts_J
        )
        step_if_finite(self.optimizer, sums)
        return torch.cat([sums, counts_J])

    def _run_aside(self) -> None:
        """On a stream of its own, as recording is: autograd remembers on which stream a gradient was summed."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self._results = self._run()
        current.wait_stream(stream)

    def _recorded(self) -> "torch.cuda.CUDAGraph":
        """Recording runs nothing. Other threads (the loader's) may use the GPU meanwhile. Raises InputError if the step
        cannot be recorded: torch's state is then undefined, so the training cannot go on in this process."""
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._results = self._run()
        except RuntimeError as error:
            what = f"the step cannot be recorded as a CUDA graph ({first_line(error)})"
            raise InputError(f"{what}; use --train.no-cuda-graph, with which steps are slower") from error
        return graph
