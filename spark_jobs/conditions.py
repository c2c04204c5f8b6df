"""Conditions in Spark SQL over the columns of the source: checked before they are used, and evaluated row by row.

A condition is an expression alone. It gives the same result for the same row in every build.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from py4j.java_gateway import is_instance_of
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BooleanType,
    DataType,
    DecimalType,
    DoubleType,
    IntegralType,
    NumericType,
    StructField,
    StructType,
)

from pnfrec_dist.config.dataset_settings import NUMBER
from pnfrec_dist.errors import InputError, first_line, nearest

CATALYST = "org.apache.spark.sql.catalyst.expressions"
REFUSED = {
    "SubqueryExpression": "a subquery",
    "UserDefinedExpression": "a function of a user",
    "RaiseError": "an error that it raises",
}
"""Classes of Spark's expressions that are no part of a condition."""
CHANGING = {"CurrentDate", "CurrentTimestamp", "Now", "LocalTimestamp", "CurrentTime", "CurrentUser", "SparkVersion"}
"""Expressions whose value changes from build to build, although Spark calls them deterministic."""
TODAY = r"'\s*(today|now|yesterday|tomorrow)\s*'"
"""Dates in words."""
ORDERED = ("GreaterThan", "GreaterThanOrEqual", "LessThan", "LessThanOrEqual", "Greatest", "Least")
"""Expressions for which the order of their values counts."""
EXACT = DecimalType(38, 9)
WHERE = "source.where"
INTERNAL = "pnfrec__"
"""Prefix of this program's own columns beside those of the source."""

Kinds = Mapping[str, DataType]


class Conditions:
    """The conditions of some settings, and the columns that each names."""

    def __init__(self, spark: SparkSession, texts: Mapping[str, str]) -> None:
        """texts: setting -> condition. Raises InputError for one that Spark cannot read."""
        self.spark, self.texts = spark, texts
        self.names = {setting: _names(spark, setting, text) for setting, text in texts.items()}
        self.used: dict[str, Kinds] = {}
        """setting -> text column -> the type that its condition uses it as: a number or boolean"""

    @property
    def columns(self) -> dict[str, str]:
        """Each column that is named -> the first setting that names it."""
        found: dict[str, str] = {}
        for setting, names in self.names.items():
            for name in names:
                found.setdefault(name, setting)
        return found

    def resolve(self, kinds: Kinds, unread: Mapping[str, str] | None = None) -> None:
        """Finds the columns. kinds: type of each column of the source; unread: those that cannot be read, and why.

        Raises InputError for an unknown column, and for what is no condition.
        """
        for name, setting in self.columns.items():
            if name in (unread or {}):
                raise InputError(f"{setting} names the column {name!r}; {(unread or {})[name]}")
            if name not in kinds:
                same = [known for known in kinds if known.lower() == name.lower()]
                way_out = f"write it as {same[0]!r}" if same else nearest(name, kinds)
                raise InputError(f"{setting} names the column {name!r}, which the source does not have; {way_out}")
        for setting, text in self.texts.items():
            own: dict[str, DataType] = {name: kinds[name] for name in self.names[setting]}
            expression = self._expression(setting, text, own)
            _require_no_order_of_text(setting, text, expression)
            self.used[setting] = _used_as(expression)
            self._expression(setting, text, {**own, **self.used[setting]})

    def _expression(self, setting: str, text: str, kinds: Kinds) -> Any:
        """Spark's expression of a condition over columns of these types."""
        schema = StructType([StructField(name, kind) for name, kind in kinds.items()])
        empty = self.spark.createDataFrame([], schema)
        try:
            plan: Any = empty.where(_whole(text))._jdf
            expression = plan.queryExecution().analyzed().condition()
        except PySparkException as error:
            raise InputError(f"{setting} {text!r} is no condition: {_reason(error)}") from error
        self._require_condition(setting, text, expression)
        return expression

    def _require_condition(self, setting: str, text: str, expression: Any) -> None:
        """Raises InputError for what is more than an expression over columns, or changes from build to build."""
        context: Any = self.spark.sparkContext
        if re.search(TODAY, text, re.I) and re.search("date|timestamp", text, re.I):
            raise InputError(f"{setting} {text!r} has a date that differs from day to day; write it out")
        for node in _nodes(expression):
            for name, what in REFUSED.items():
                if is_instance_of(context._gateway, node, f"{CATALYST}.{name}"):
                    raise InputError(f"{setting} {text!r} has {what}; use expressions over the columns alone")
            if _is_changing(node):
                what = f"{node.prettyName()}(), which differs from build to build"
                raise InputError(f"{setting} {text!r} has {what}; leave it out")

    def evaluate(self, rows: DataFrame, own: Sequence[Column], values: Mapping[str, Column]) -> DataFrame:
        """The columns `own`, among them `problem`, and a boolean column for each condition, named by its setting.

        values: the columns that the conditions name. A row with a problem meets no condition, and neither does one that
        does not meet WHERE. Text that a condition uses as a number, but is none, is a problem.
        """
        if not self.texts:
            return rows.select(*own)
        # The names of the source's columns may be anything, so this program's own get a prefix meanwhile.
        places = {name: f"value_{place}" for place, name in enumerate(values)}
        rows = rows.select(*own, *[value.alias(places[name]) for name, value in values.items()])
        kept = [name for name in rows.columns if name not in places.values()]
        for setting in sorted(self.texts, key=lambda setting: setting != WHERE):
            rows = self._with(setting, rows, places)
        return rows.select(*[F.col(f"`{name}`") for name in (*kept, *self.texts)])

    def _with(self, setting: str, rows: DataFrame, places: Mapping[str, str]) -> DataFrame:
        """Adds the column of one condition."""
        is_read = F.col("problem").isNull()
        if WHERE in rows.columns:
            is_read &= met(WHERE)
        named, problems = {}, []
        for name in self.names[setting]:
            named[name], problem = self._read_as(setting, F.col(places[name]), name)
            problems += problem
        fault = F.coalesce(F.lit(None).cast("string"), *problems)
        kept = [name for name in rows.columns if name != "problem"]
        beside = rows.select(
            *[F.col(f"`{name}`").alias(INTERNAL + name) for name in kept],
            F.col("problem").alias(f"{INTERNAL}problem"),
            F.when(is_read, fault).alias(f"{INTERNAL}fault"),
            is_read.alias(f"{INTERNAL}is_read"),
            *[value.alias(name) for name, value in named.items()],
        )
        is_read, fault = F.col(f"{INTERNAL}is_read"), F.col(f"{INTERNAL}fault")
        is_whole = is_read if setting == WHERE else is_read & fault.isNull()
        found = beside.select(
            *[F.col(f"`{INTERNAL}{name}`").alias(name) for name in (*kept, "problem")],
            F.when(is_whole, _whole(self.texts[setting])).alias(setting),
            fault.alias("fault"),
        )
        # A row that does not meet WHERE, whatever the number, is just not read.
        matters = F.col(f"`{WHERE}`").isNull() if setting == WHERE else F.lit(True)
        fault = F.when(matters, F.col("fault"))
        return found.withColumn("problem", F.coalesce("problem", fault)).drop("fault")

    def _read_as(self, setting: str, value: Column, name: str) -> tuple[Column, list[Column]]:
        """(a column as the type that a condition uses it as, the problem of values that are not of it)."""
        kind = self.used[setting].get(name)
        if kind is None:
            return value, []
        if isinstance(kind, BooleanType):
            found, what = value.try_cast("boolean"), "true or false"
        else:
            found = F.when(value.rlike(rf"^\s*{NUMBER}\s*$"), value.try_cast(kind))
            what = "a number"
        return found, [F.when(value.isNotNull() & found.isNull(), F.lit(f"{name} is not {what}"))]


def _whole(text: str) -> Column:
    """The expression of a condition. In brackets, nothing at its end is taken for a name of it."""
    return F.expr(f"({text}\n)")


def met(setting: str) -> Column:
    """Whether a row meets the condition of a setting, after evaluate(); null counts as not."""
    return F.coalesce(F.col(f"`{setting}`"), F.lit(False))


def _names(spark: SparkSession, setting: str, text: str) -> list[str]:
    """The columns that a condition names."""
    session: Any = spark._jsparkSession
    try:
        parsed = session.sessionState().sqlParser().parseExpression(text)
    except PySparkException as error:
        raise InputError(f"{setting} {text!r} cannot be read: {_reason(error)}") from error
    names = []
    for parts in _named(parsed, frozenset()):
        if len(parts) > 1:
            name = ".".join(parts)
            way_out = f"fields of a record are not read; write `{name}` in backquotes if it is one column"
            raise InputError(f"{setting} names {name}; {way_out}")
        names.append(parts[0])
    return names


def _named(node: Any, bound: frozenset[str]) -> Iterator[list[str]]:
    """The parts of each name in a parsed expression; bound: names of the arguments of functions x -> ..."""
    kind = node.getClass().getSimpleName()
    if kind == "LambdaFunction":
        bound |= {part for argument in _sequence(node.arguments()) for part in _sequence(argument.nameParts())}
    if kind in ("UnresolvedAttribute", "UnresolvedNamedLambdaVariable"):
        parts = list(_sequence(node.nameParts()))
        if parts[0] not in bound:
            yield parts
    for child in _sequence(node.children()):
        yield from _named(child, bound)


def _is_changing(node: Any) -> bool:
    """Whether an expression changes from build to build, not only because a part of it does."""
    if node.getClass().getSimpleName() in CHANGING:
        return True
    return not node.deterministic() and all(child.deterministic() for child in _sequence(node.children()))


def evaluation_error(message: str, texts: Mapping[str, str]) -> InputError | None:
    """The error of a condition that fails for a row, such as a division by zero, from Spark's message; else None.

    texts: setting -> condition.
    """
    found = re.search(
        r"\[[\w.]+\] (.+?)(?: If necessary set .*)? SQLSTATE: (?:22|P0)\w+(?:\s+== SQL .*?==\n(.+))?", message
    )
    if not found or not texts:
        return None
    part = (found[2] or "").strip().lstrip("(")
    settings = [setting for setting, text in texts.items() if part and part in text] or list(texts)
    return InputError(f"{' or '.join(settings)} fails for a row: {found[1].rstrip('.')}")


def _require_no_order_of_text(setting: str, text: str, expression: Any) -> None:
    """Raises InputError where text would be compared by the alphabet, in which 9 comes after 10."""
    for node in _nodes(expression):
        if node.getClass().getSimpleName() not in ORDERED:
            continue
        parts = list(_sequence(node.children()))
        if any(part.dataType().typeName() != "string" for part in parts):
            continue
        columns = [part.name() for part in parts if part.getClass().getSimpleName() == "AttributeReference"]
        numbers = [part.toString() for part in parts if re.fullmatch(NUMBER, part.toString().strip())]
        if len(columns) > 1 or (columns and numbers):
            what = " and ".join([*columns, *(f"'{number}'" for number in numbers)])
            way_out = f"for numbers, write cast({columns[0]} as double)"
            raise InputError(f"{setting} {text!r} compares {what} as text, letter by letter; {way_out}")


def _used_as(expression: Any) -> dict[str, DataType]:
    """Text columns that an expression converts to numbers or booleans, with the type that holds all uses.

    Whole numbers are read as decimals, because a double is exact up to 2^53 only.
    """
    shared = {
        node.id().toString(): node.child()
        for node in _nodes(expression)
        if node.getClass().getSimpleName() == "CommonExpressionDef"
    }
    found: dict[str, DataType] = {}
    for node in _nodes(expression):
        if node.getClass().getSimpleName() != "Cast" or node.evalMode().toString() == "TRY":
            continue
        child = node.child()
        if child.getClass().getSimpleName() == "CommonExpressionRef":
            child = shared[child.id().toString()]
        if child.getClass().getSimpleName() != "AttributeReference" or child.dataType().typeName() != "string":
            continue
        wanted, name = DataType.fromDDL(node.dataType().sql()), child.name()
        if isinstance(wanted, IntegralType | DecimalType):
            found[name] = found[name] if isinstance(found.get(name), DoubleType) else EXACT
        elif isinstance(wanted, NumericType):
            found[name] = DoubleType()
        elif isinstance(wanted, BooleanType):
            found.setdefault(name, BooleanType())
    return found


def _nodes(expression: Any) -> Iterator[Any]:
    yield expression
    for child in _sequence(expression.children()):
        yield from _nodes(child)


def _sequence(found: Any) -> Iterator[Any]:
    return (found.apply(place) for place in range(found.size()))


def _reason(error: PySparkException) -> str:
    """Spark's message in one line, without its codes."""
    text = re.sub(r"^\[[\w.]+\] *", "", first_line(error))
    return re.sub(r" *SQLSTATE: \w+.*$", "", text).strip().rstrip(".;")
