"""Conditions over columns of every type, and the type that they use text as."""

import datetime
from decimal import Decimal
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BooleanType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    LongType,
    StringType,
    StructField,
    StructType,
)

from pnfrec_dist.errors import InputError
from spark_jobs.conditions import Conditions, met

pytestmark = pytest.mark.integration
OWN = {"text": StringType(), "number": StringType(), "flag": StringType(), "a.b": StringType(), "problem": StringType()}
TYPES: dict[str, DataType] = {
    "day": DateType(),
    "price": DecimalType(10, 2),
    "share": DoubleType(),
    "count": LongType(),
    "liked": BooleanType(),
}
ROWS: list[dict[str, Any]] = [
    {"text": "like", "number": "85.5", "flag": "true", "a.b": "x", "price": Decimal("1.50"), "liked": True},
    {"text": "skip", "number": " 0.9 ", "flag": "FALSE", "a.b": "y", "count": 2**53 + 1, "share": float("nan")},
    {"text": None, "number": "1e2", "flag": None, "day": datetime.date(2024, 5, 1), "share": 0.7},
    {"text": "7", "number": None, "flag": "1", "count": 2**53},
    {"text": "broken", "number": "5", "flag": "true", "problem": "not 5 fields"},
]


def rows_met(spark: SparkSession, text: str) -> tuple[list[int], dict[int, str]]:
    """(the places of ROWS that meet a condition, place -> problem)."""
    kinds = OWN | TYPES
    table = StructType([StructField(name, kind) for name, kind in kinds.items()])
    full = [tuple({"problem": None, **dict.fromkeys(kinds), **row}[name] for name in kinds) for row in ROWS]
    conditions = Conditions(spark, {"feedback.positive": text})
    conditions.resolve({name: kind for name, kind in kinds.items() if name != "problem"})
    rows = spark.createDataFrame(full, table).coalesce(1).withColumn("place", F.monotonically_increasing_id())
    own = [F.col("place"), F.col("problem")]
    found = conditions.evaluate(rows, own, {name: F.col(f"`{name}`") for name in conditions.columns})
    found = found.select("place", "problem", met("feedback.positive").alias("met")).orderBy("place").collect()
    return [r["place"] for r in found if r["met"]], {r["place"]: r["problem"] for r in found if r["problem"]}


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("text = 'like'", [0]),
        ("number > 0", [0, 1, 2]),
        ("number between 0.5 and 90", [0, 1]),
        ("number in (100, 85.5)", [0, 2]),
        ("coalesce(number, 3) = 3", [3]),
        ("abs(number) + count > 1", [1]),
        ("cast(number as double) >= 85.5", [0, 2]),
        ("flag and text is not null", [0, 3]),
        ("not flag or liked", [0, 1]),
        ("flag = true and number is null", [3]),
        ("`a.b` = 'x' or text is null", [0, 2]),
        ("day >= date'2024-05-01'", [2]),
        ("price = 1.5 or share >= 0.7", [0, 1, 2]),
        ("count > 9007199254740992", [1]),
        ("case text when 'like' then true when '7' then liked is null end", [0, 3]),
        ("exists(array('like', '7'), x -> x = text)", [0, 3]),
        ("try_cast(text as int) = 7", [3]),
        ("text = 'like' -- a comment", [0]),
    ],
)
def test_a_condition_over_columns_of_every_type(spark: SparkSession, text: str, places: list[int]) -> None:
    found, problems = rows_met(spark, text)
    assert (found, problems) == (places, {4: "not 5 fields"})


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("text > 5", 0, "text is not a number"),
        ("text = true", 0, "text is not true or false"),
        ("number = 85.5 and text > 1", 1, "text is not a number"),
    ],
)
def test_text_of_another_type_is_a_problem(spark: SparkSession, text: str, place: int, problem: str) -> None:
    assert rows_met(spark, text)[1][place] == problem


def test_names_that_differ_by_case_are_not_guessed(spark: SparkSession) -> None:
    conditions = Conditions(spark, {"source.where": "Text = 'like'"})
    with pytest.raises(InputError, match="write it as 'text'"):
        conditions.resolve(OWN)
