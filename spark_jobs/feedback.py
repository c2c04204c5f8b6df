"""Relevances, labels and conditions -> what counts as a like or a dislike, row by row."""

import functools
import operator
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import FloatType, StringType

from pnfrec_dist.config.dataset_settings import NUMBER, FeedbackSettings, label_value
from spark_jobs.conditions import met

POSITIVE_LABEL, NEGATIVE_LABEL = 1.0, 0.0
"""The relevance of likes and dislikes that are chosen by labels or conditions."""
POSITIVE, NEGATIVE = "feedback.positive", "feedback.negative"
NO_LABEL = "is no label that the settings name"


def relevance_of(rows: DataFrame, feedback: FeedbackSettings) -> Column:
    """The relevance as double (label or condition: 1 for positive, 0 for negative), or null if it cannot be read.

    A float32 counts as its shortest decimal: 0.7, not 0.699999988079071.
    """
    if feedback.positive:
        return _by_condition(feedback)
    value = F.col("relevance")
    if isinstance(rows.schema["relevance"].dataType, FloatType):
        value = value.cast("string")
    if feedback.threshold != "labels":
        return value.try_cast("double")
    label = label_of(value)
    known = _is_one_of(label, feedback.negative_labels) if feedback.negative_labels else label != ""
    positive = _is_one_of(label, feedback.positive_labels)
    return F.when(positive, F.lit(POSITIVE_LABEL)).when(known, F.lit(NEGATIVE_LABEL))


def label_of(value: Column) -> Column:
    return F.lower(F.trim(value.cast("string")))


def _is_one_of(label: Column, labels: Sequence[str]) -> Column:
    """Whether a label is one of some; numbers are compared as numbers."""
    values = [label_value(text) for text in labels]
    found = label.isin([value for value in values if isinstance(value, str)])
    numbers = [value for value in values if isinstance(value, float)]
    if numbers:
        found |= F.when(label.rlike(f"^{NUMBER}$"), label.try_cast("double").isin(numbers)).otherwise(F.lit(False))
    return found


def relevance_reason(values: DataFrame, feedback: FeedbackSettings, name: str) -> Column:
    if feedback.positive:
        return F.lit(None).cast("string")
    relevance, read = F.col("relevance"), F.col("relevance_read")
    if feedback.threshold == "labels":
        return F.when(relevance.isNull(), empty_or(name, "relevance_read", f"{name} {NO_LABEL}"))
    not_number = f"{name} is not a number"
    reason = F.when(relevance.isNull(), empty_or(name, "relevance_read", not_number))
    reason = reason.when(F.isnan(relevance) | (F.abs(relevance) == float("inf")), F.lit(f"{name} is not finite"))
    if isinstance(values.schema["relevance_read"].dataType, StringType):
        # Java reads 5d and 5f as 5, and 0x1p3 as 8.
        java_only = functools.reduce(operator.or_, (read.contains(letter) for letter in "dDfFxX"))
        reason = reason.when(java_only, F.lit(not_number))
    return reason


def empty_or(name: str, column: str, otherwise: str) -> Column:
    """The reason for a value that cannot be read: it is empty, or another one."""
    read = F.col(column)
    is_empty = read.isNull() | (F.trim(read.cast("string")) == "")
    return F.when(is_empty, F.lit(f"{name} is empty")).otherwise(F.lit(otherwise))


def _by_condition(feedback: FeedbackSettings) -> Column:
    """1 for rows that are likes, 0 for dislikes, null for neither and for both."""
    positive = met(POSITIVE)
    negative = met(NEGATIVE) if feedback.negative else ~positive & (rules_met(feedback.undone_by, "undone_by") == 0)
    return F.when(positive & ~negative, F.lit(POSITIVE_LABEL)).when(~positive & negative, F.lit(NEGATIVE_LABEL))


def is_both(feedback: FeedbackSettings) -> Column:
    """The problem of a row that is both a like and a dislike."""
    if not feedback.negative:
        return F.lit(None).cast("string")
    return F.when(met(POSITIVE) & met(NEGATIVE), F.lit(f"meets both {POSITIVE} and {NEGATIVE}"))


def rules_met(conditions: Sequence[str], name: str) -> Column:
    """Which of the conditions of feedback.`name` a row meets, as bits."""
    bits = (F.when(met(f"feedback.{name}[{place}]"), 1 << place).otherwise(0) for place in range(len(conditions)))
    return functools.reduce(operator.add, bits, F.lit(0))
