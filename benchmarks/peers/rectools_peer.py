"""RecTools' SASRec: python -m benchmarks.peers.rectools_peer TASK.json, in an environment of rectools.txt.

Recipes: softmax, SASRec with the full softmax; esasrec, LiGR layers with sampled softmax, its best published one.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers

from benchmarks.peers.exchange import COVER, LIST_LENGTH, TRAIN, Histories, Progress, Scores, Task, epochs_callback

RECIPES: dict[str, dict[str, Any]] = {
    "softmax": {"loss": "softmax"},
    "esasrec": {"loss": "sampled_softmax", "n_negatives": 256, "transformer_layers_type": LiGRLayers},
}


def main() -> None:
    task = Task.from_command_line()
    torch.set_num_threads(task.threads)
    seed_everything(task.seed)
    progress = Progress(task)
    model = SASRecModel(
        n_blocks=task.num_blocks,
        n_heads=task.num_heads,
        n_factors=task.hidden_size,
        dropout_rate=task.dropout,
        session_max_len=task.max_length,
        lr=task.lr,
        batch_size=task.batch_size,
        recommend_batch_size=256,
        get_trainer_func=lambda: trainer(task, progress),
        **RECIPES[task.recipe],
    )
    covers = (Path(task.data) / COVER).is_file()  # its catalog is the items of the training interactions
    histories = task.histories(*([TRAIN, COVER] if covers else [TRAIN]))
    dataset = Dataset.construct(interactions(histories))
    model.fit(dataset)
    epochs = model.fit_trainer.callbacks[0]  # fit() works on a copy of the trainer
    progress = epochs.progress
    if epochs.best is not None:
        model.lightning_model.load_state_dict(epochs.best)
    progress.write_lists(scores_of(model.lightning_model, task))
    users = np.arange(len(histories))
    progress.time_user_lists(lambda: model.recommend(users, dataset, k=LIST_LENGTH, filter_viewed=True))
    progress.write()


def trainer(task: Task, progress: Progress) -> Trainer:
    epochs = epochs_callback(Callback, progress, lambda module: scores_of(module, task))
    return Trainer(min_epochs=1, callbacks=[epochs], **task.trainer)


def interactions(histories: Histories) -> pd.DataFrame:
    """One row for each interaction. Its place in the history is its time."""
    lengths = np.diff(histories.offsets)
    place = np.arange(len(histories.values)) - np.repeat(histories.offsets[:-1], lengths)
    return pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(len(histories)), lengths),
            "item_id": histories.values,
            "weight": 1.0,
            "datetime": pd.Timestamp("2020-01-01") + pd.to_timedelta(place, unit="s"),
        }
    )


def scores_of(module: LightningModule, task: Task) -> Scores:
    """Items that no training user has get -inf."""
    ids = module.data_preparator.item_id_map.get_external_sorted_by_internal()
    extra = module.data_preparator.n_item_extra_tokens
    internal = np.zeros(task.num_items + 1, dtype=np.int64)
    internal[np.array(ids[extra:], dtype=np.int64)] = np.arange(extra, len(ids))

    @torch.inference_mode()
    def scores(histories: Histories, first: int, end: int) -> np.ndarray:
        was_training = module.torch_model.training
        module.torch_model.eval()
        x = torch.from_numpy(internal[histories.padded(first, end, task.max_length)])
        item_embs = module.torch_model.item_model.get_all_embeddings()
        session_embs = module.torch_model.encode_sessions({"x": x}, item_embs)[:, -1, :]
        found = (session_embs @ item_embs.T).numpy()
        module.torch_model.train(was_training)
        of_items = found[:, internal[1:]]
        of_items[:, internal[1:] == 0] = -np.inf
        return of_items

    return scores


if __name__ == "__main__":
    main()
