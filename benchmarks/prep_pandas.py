"""python -m benchmarks.prep_pandas LOG OUT: the protocol in plain pandas, in one thread and in memory."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

THRESHOLD, MAX_HISTORY = 3.5, 200


def main(log: str, out: str) -> None:
    """Writes items, train, validation and test below `out`."""
    directory = Path(out)
    directory.mkdir(parents=True)
    rows = pd.read_csv(log, dtype={"user": str, "item": str})
    rows = rows.drop_duplicates(["user", "item", "rating", "timestamp"])
    split = np.quantile(rows["timestamp"], 0.9, method="nearest")
    before = rows[rows["timestamp"] < split]
    items = before.groupby("item")["user"].nunique()
    kept = before[before["item"].isin(items.index[items >= 5])]
    users = kept.groupby("user")["item"].nunique()
    rows = rows[rows["item"].isin(items.index[items >= 5]) & rows["user"].isin(users.index[users >= 5])]
    rows = rows.assign(is_positive=rows["rating"] >= THRESHOLD, is_train=rows["timestamp"] < split)
    train = rows[rows["is_train"]]
    catalog = train.groupby("item")["is_positive"].agg(["sum", "count"])
    catalog = catalog.loc[sorted(catalog.index, key=int)]
    catalog["item_id"] = np.arange(1, len(catalog) + 1, dtype=np.int32)
    catalog.reset_index().to_parquet(directory / "items.parquet")
    rows = rows[rows["item"].isin(catalog.index)]
    rows = rows.assign(item_id=rows["item"].map(catalog["item_id"])).drop(columns="item")
    rows = rows.sort_values(["user", "timestamp"], kind="stable")

    def enough(part: pd.DataFrame) -> pd.Index:
        positives = part.groupby("user")["is_positive"].sum()
        return positives.index[positives >= 2]

    def sequences(part: pd.DataFrame, *, holdout: bool) -> pd.DataFrame:
        lists = []
        for user, events in part.groupby("user", sort=True):
            item, positive = events["item_id"].to_numpy(), events["is_positive"].to_numpy()
            history, flags = (item[:-1], positive[:-1]) if holdout else (item, positive)
            row = {
                "user_id": user,
                "items": history[-MAX_HISTORY:],
                "is_positive": flags[-MAX_HISTORY:],
                "positive_items": history[flags][-MAX_HISTORY:],
                "negative_items": history[~flags][-MAX_HISTORY:],
            }
            if holdout:
                row |= {"seen_items": np.unique(history), "target_item": item[-1], "target_is_positive": positive[-1]}
            lists.append(row)
        return pd.DataFrame(lists)

    train_users = enough(rows[rows["is_train"]])
    train = rows[rows["is_train"] & rows["user"].isin(train_users)]
    sequences(train, holdout=False).to_parquet(directory / "train.parquet")
    chosen = enough(rows[~rows["is_train"]]).intersection(train_users)
    evaluated = sequences(rows[rows["user"].isin(chosen)], holdout=True)
    is_test = pd.util.hash_array(evaluated["user_id"].to_numpy()) % 2 == 0
    evaluated[~is_test & evaluated["target_is_positive"]].to_parquet(directory / "validation.parquet")
    evaluated[is_test].to_parquet(directory / "test.parquet")


if __name__ == "__main__":
    main(*sys.argv[1:])
