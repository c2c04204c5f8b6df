"""Which rows of a user and an item stay: equal rows, rows that later ones take back, repeated pairs."""

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from spark_jobs.clean import INTERACTION, UNDOING


def accepted(typed: DataFrame, partitions: int, rules: int = 0) -> DataFrame:
    """The good rows of typed_rows(): INTERACTION, position, copies; with rules (of feedback.undone) also undone_at.

    All rows of a user are in one partition, sorted by user and item. Rows equal in all of INTERACTION collapse to the
    first; copies is how many there were. All later steps use these partitions, and mostly their order: this is the only
    shuffle of the whole log. undone_at: time of the first later row that takes this one back, or null.
    """
    return interactions_of(good_rows(typed, partitions, with_rules=rules > 0), rules)


def good_rows(typed: DataFrame, partitions: int, *, with_rules: bool) -> DataFrame:
    """The good rows of typed_rows(), all rows of a user in one partition: INTERACTION, position; with rules UNDOING."""
    good = typed.where(F.col("reason").isNull() & F.col("left_out").isNull())
    columns = (*INTERACTION, *(UNDOING if with_rules else ()), "position")
    return good.select(*columns).repartition(partitions, "raw_user_id")


def interactions_of(placed: DataFrame, rules: int) -> DataFrame:
    """accepted() from good_rows(), or from interactions without rules, whose copies add up."""
    if rules:
        placed = with_undone_at(placed, rules).where(F.col("relevance").isNotNull())
    return _collapsed(placed)


def with_undone_at(rows: DataFrame, rules: int) -> DataFrame:
    """Rows with undone_at instead of UNDOING: the time of the next later row of the same user and item that has one of
    the same bits, or null.
    """
    # From the newest to the oldest, Spark keeps one value for a rule; from the oldest on, it would search each time.
    newest_first = Window.partitionBy("raw_user_id", "raw_item_id").orderBy(
        F.col("timestamp").desc(), F.col("position").desc()
    )
    later = newest_first.rowsBetween(Window.unboundedPreceding, -1)

    def next_time(rule: int) -> Column:
        is_undoing = F.getbit("undone_by", F.lit(rule)) == 1
        return F.last(F.when(is_undoing, F.col("timestamp")), ignorenulls=True).over(later)

    times = [F.when(F.getbit("undone", F.lit(rule)) == 1, next_time(rule)) for rule in range(rules)]
    first = F.least(*times) if len(times) > 1 else times[0]
    return rows.withColumn("undone_at", first).drop(*UNDOING)


def _collapsed(placed: DataFrame) -> DataFrame:
    # Spark would plan two aggregations for a key of doubles; for a single number, xxhash64 is one-to-one.
    keys = ("raw_user_id", "raw_item_id", "timestamp", "bits")
    ordered = placed.withColumn("bits", F.xxhash64("relevance")).sortWithinPartitions(*keys)
    found = [
        F.first("relevance").alias("relevance"),
        F.min("position").alias("position"),
        (F.sum("copies") if "copies" in placed.columns else F.count("*")).cast("int").alias("copies"),
    ]
    undone = "undone_at" in placed.columns
    if undone:  # of equal rows, one may stay
        stays = F.count_if(F.col("undone_at").isNull()) > 0
        found.append(F.when(~stays, F.max("undone_at")).alias("undone_at"))
    kept = ordered.groupBy(*keys).agg(*found)
    return kept.select(*INTERACTION, "position", "copies", *(["undone_at"] if undone else []))


def standing(interactions: DataFrame) -> DataFrame:
    """The interactions that no later row takes back."""
    is_undoable = "undone_at" in interactions.columns
    return interactions.where(F.col("undone_at").isNull()) if is_undoable else interactions


def not_undone(interactions: DataFrame, split: int) -> DataFrame:
    """The interactions that no row takes back, and those before T (`split`) that only a row from T on takes back.

    With is_undone instead of undone_at: true for the latter. They stay in train, which no later row may change, and
    are left out of the histories of train and holdout together.
    """
    if "undone_at" not in interactions.columns:
        return interactions
    undone_at, is_train = F.col("undone_at"), F.col("timestamp") < split
    kept = interactions.where(undone_at.isNull() | (is_train & (undone_at >= split)))
    return kept.withColumn("is_undone", undone_at.isNotNull()).drop("undone_at")


def collapse_pairs(interactions: DataFrame, rule: str, split: int) -> DataFrame:
    """One interaction per user and item: the first ("keep_first") or the newest ("keep_last"). "keep_all": all.

    keep_last is applied to train and holdout separately: a row from T (`split`) on must not remove one from train. In
    the history of a holdout user, mark_newest() then leaves only the newest.
    """
    if rule == "keep_all":
        return interactions
    keys = ["raw_user_id", "raw_item_id"]
    order = [F.col("timestamp"), F.col("position")]
    if rule == "keep_last":
        order = [key.desc() for key in order]
        interactions = interactions.withColumn("is_train", F.col("timestamp") < split)
        keys.append("is_train")
    place = F.row_number().over(Window.partitionBy(*keys).orderBy(*order))
    return interactions.withColumn("place", place).where(F.col("place") == 1).drop("place", "is_train")


def mark_newest(encoded: DataFrame, rule: str) -> DataFrame:
    """Adds is_newest: false if a later row of the same user and item takes it back or replaces it ("keep_last").

    Also newest_timestamp and newest_position: those of the row that replaces it, else its own.
    """
    is_standing = ~F.col("is_undone") if "is_undone" in encoded.columns else F.lit(True)
    own = {f"newest_{name}": F.col(name) for name in ("timestamp", "position")}
    if rule != "keep_last":
        return encoded.withColumns({"is_newest": is_standing, **own})
    newest_first = Window.partitionBy("raw_user_id", "item_id").orderBy(
        is_standing.desc(), F.col("timestamp").desc(), F.col("position").desc()
    )
    newest = {
        name: F.when(is_standing, F.first(value).over(newest_first)).otherwise(value) for name, value in own.items()
    }
    return encoded.withColumns({"is_newest": is_standing & (F.row_number().over(newest_first) == 1), **newest})
