"""RePlay's SasRec: python -m benchmarks.peers.replay_peer TASK.json, in an environment of replay.txt.

Recipes: ce, the full cross-entropy; sce, the scalable cross-entropy with 2 sqrt(B L) buckets, as its paper advises.
"""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.models.nn.loss import ScalableCrossEntropyLoss, SCEParams
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import PandasTopItemsCallback
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.lightning.postprocessor import SeenItemsFilter
from replay.nn.sequential import SasRec
from replay.nn.transform.template import make_default_sasrec_transforms

from benchmarks.peers.exchange import LIST_LENGTH, TRAIN, Histories, Progress, Scores, Task, epochs_callback

ITEM, USER, SEEN = "item_id", "user", "seen_ids"


class ScalableLoss(torch.nn.Module):
    """RePlay's scalable cross-entropy, as a loss of its newer SasRec."""

    def __init__(self, task: Task, weights: Any) -> None:
        super().__init__()
        positions = task.batch_size * task.max_length
        buckets = int(2 * positions**0.5)
        self._loss = ScalableCrossEntropyLoss(SCEParams(buckets, min(buckets, positions), min(256, task.num_items)))
        self.weights, self.logits_callback = weights, None

    def forward(self, model_embeddings: torch.Tensor, **batch: torch.Tensor) -> torch.Tensor:
        mask = batch["target_padding_mask"].squeeze(-1)
        labels = batch["positive_labels"].squeeze(-1).masked_fill(~mask, 0)  # padding has no row among the weights
        return self._loss(model_embeddings, labels, self.weights(), mask)


def main() -> None:
    task = Task.from_command_line()
    torch.set_num_threads(task.threads)
    lightning.seed_everything(task.seed)
    progress, schema = Progress(task), item_schema(task)
    model = SasRec.from_params(schema, task.hidden_size, task.num_heads, task.num_blocks, task.max_length, task.dropout)
    if task.recipe == "sce":
        model.loss = ScalableLoss(task, model.body.embedder.get_item_weights)
    module = LightningModule(model, OptimizerFactory(learning_rate=task.lr))
    epochs = epochs_callback(lightning.Callback, progress, lambda module: scores_of(module.model, task))
    data = data_module(task, task.histories(TRAIN), schema)
    lightning.Trainer(callbacks=[epochs], limit_val_batches=0, **task.trainer).fit(module, datamodule=data)
    if epochs.best is not None:
        module.load_state_dict(epochs.best)
    progress.write_lists(scores_of(model, task))
    lists = PandasTopItemsCallback(LIST_LENGTH, USER, ITEM, postprocessors=[SeenItemsFilter(task.num_items)])
    lister = lightning.Trainer(callbacks=[lists], **task.trainer)
    progress.time_user_lists(lambda: (lister.predict(module, data, return_predictions=False), lists.get_result()))
    progress.write()


def item_schema(task: Task) -> TensorSchema:
    item = TensorFeatureInfo(
        ITEM,
        is_seq=True,
        feature_type=FeatureType.CATEGORICAL,
        embedding_dim=task.hidden_size,
        padding_value=task.num_items,
        cardinality=task.num_items,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, ITEM)],
    )
    return TensorSchema([item])


def data_module(task: Task, histories: Histories, schema: TensorSchema) -> ParquetModule:
    """RePlay's items are 0 to N - 1, its padding is N."""
    train, users, items = Path(task.out) / "train.parquet", Path(task.out) / "users.parquet", []
    items = [history.astype(np.int64) - 1 for history in histories]
    pq.write_table(pa.table({ITEM: items}), train)
    pq.write_table(pa.table({ITEM: items, SEEN: items, USER: np.arange(len(items))}), users)
    shape = {"shape": task.max_length, "padding": task.num_items}
    seen = {"shape": max(map(len, items)), "padding": task.num_items}
    metadata = {"train": {ITEM: shape | {"shape": task.max_length + 1}}, "predict": {ITEM: shape, SEEN: seen, USER: {}}}
    transforms = {name: made for name, made in make_default_sasrec_transforms(schema).items() if name in metadata}
    paths = {"train_path": str(train), "predict_path": str(users)}
    return ParquetModule({"train": task.batch_size, "predict": 256}, metadata, transforms, **paths)


def scores_of(model: SasRec, task: Task) -> Scores:
    @torch.inference_mode()
    def scores(histories: Histories, first: int, end: int) -> np.ndarray:
        was_training = model.training
        model.eval()
        items = torch.from_numpy(histories.padded(first, end, task.max_length, task.num_items + 1) - 1)
        found = model({ITEM: items}, items != task.num_items)["logits"].numpy()
        model.train(was_training)
        return found

    return scores


if __name__ == "__main__":
    main()
