"""Conditions in Spark SQL over the columns of the source: checked before they are used, and evaluated row by row.

A condition is an expression alone. It gives the same result for the same row in every build.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from py4j.java_gateway import is_instance_of
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, DataType, DoubleType, NumericType, StructField, StructType

from pnfrec_dist.config.dataset_settings import NUMBER
from pnfrec_dist.errors import InputError, first_line, nearest

CATALYST = "org.apache.spark.sql.catalyst.expressions"
REFUSED = {
    "SubqueryExpression": "a subquery",
    "UserDefinedExpression": "a function of a user",
}
"""Classes of Spark's expressions that are no part of a condition."""
CHANGING = {"CurrentDate", "CurrentTimestamp", "Now", "LocalTimestamp", "CurrentTime", "CurrentUser", "SparkVersion"}
"""Expressions whose value changes from build to build, although Spark calls them deterministic."""
INTERNAL = "pnfrec__"
"""Prefix of this program's own columns beside those of the source."""

Kinds = Mapping[str, DataType]


class Conditions:
    """The conditions of some settings, and the columns that they name."""

    def __init__(self, spark: SparkSession, texts: Mapping[str, str]) -> None:
        """texts: setting -> condition. Raises InputError for one that Spark cannot read."""
        self.spark, self.texts = spark, texts
        self.names: dict[str, str] = {}
        """column -> the first setting that names it"""
        for setting, text in texts.items():
            for name in _names(spark, setting, text):
                self.names.setdefault(name, setting)
        self.used: dict[str, DataType] = {}
        """text column -> the type that the conditions use it as, double or boolean"""

    def resolve(self, kinds: Kinds, unread: Mapping[str, str] | None = None) -> None:
        """Finds the columns. kinds: type of each column of the source; unread: those that cannot be read, and why.

        Raises InputError for an unknown column, and for what is no condition.
        """
        for name, setting in self.names.items():
            if name in (unread or {}):
                raise InputError(f"{setting} names the column {name!r}; {(unread or {})[name]}")
            if name not in kinds:
                same = [known for known in kinds if known.lower() == name.lower()]
                way_out = f"write it as {same[0]!r}" if same else nearest(name, kinds)
                raise InputError(f"{setting} names the column {name!r}, which the source does not have; {way_out}")
        own = {name: kinds[name] for name in self.names}
        for expression in self._expressions(own):
            self.used |= _used_as(expression)
        self._expressions(own | self.used)

    def _expressions(self, kinds: Kinds) -> list[Any]:
        """Spark's expression of each condition over columns of these types."""
        schema = StructType([StructField(name, kind) for name, kind in kinds.items()])
        empty = self.spark.createDataFrame([], schema)
        found = []
        for setting, text in self.texts.items():
            try:
                plan: Any = empty.where(F.expr(text))._jdf
                expression = plan.queryExecution().analyzed().condition()
            except AnalysisException as error:
                raise InputError(f"{setting} {text!r} is no condition: {_reason(error)}") from error
            self._require_condition(setting, text, expression)
            found.append(expression)
        return found

    def _require_condition(self, setting: str, text: str, expression: Any) -> None:
        """Raises InputError for what is more than an expression over columns, or changes from build to build."""
        context: Any = self.spark.sparkContext
        for node in _nodes(expression):
            for name, what in REFUSED.items():
                if is_instance_of(context._gateway, node, f"{CATALYST}.{name}"):
                    raise InputError(f"{setting} {text!r} has {what}; use expressions over the columns alone")
            if _is_changing(node):
                what = f"{node.prettyName()}(), which differs from build to build"
                raise InputError(f"{setting} {text!r} has {what}; leave it out")

    def evaluate(self, rows: DataFrame, own: Sequence[Column], values: Mapping[str, Column]) -> DataFrame:
        """The columns `own`, among them `problem`, and a boolean column for each condition, named by its setting.

        values: the columns that the conditions name. A row with a problem meets no condition. Text that a condition
        uses as a number, but is none, is a problem.
        """
        if not self.texts:
            return rows.select(*own)
        # The names of the source's columns may be anything, so this program's own get a prefix meanwhile.
        places = {name: f"{INTERNAL}{place}" for place, name in enumerate(values)}
        beside = rows.select(*own, *[value.alias(places[name]) for name, value in values.items()])
        named, problems = {}, [F.col("problem")]
        for name in values:
            named[name], problem = self._read_as(F.col(places[name]), name)
            problems += problem
        kept = [name for name in beside.columns if name not in places.values() and name != "problem"]
        ready = beside.select(
            *[F.col(name).alias(INTERNAL + name) for name in kept],
            F.coalesce(*problems).alias(f"{INTERNAL}problem"),
            *[value.alias(name) for name, value in named.items()],
        )
        whole = F.col(f"{INTERNAL}problem").isNull()
        met_ones = [F.when(whole, F.expr(f"({text}\n)")).alias(setting) for setting, text in self.texts.items()]
        return ready.select(*[F.col(INTERNAL + name).alias(name) for name in (*kept, "problem")], *met_ones)

    def _read_as(self, value: Column, name: str) -> tuple[Column, list[Column]]:
        """(a column as the type that the conditions use it as, the problem of values that are not of it)."""
        kind = self.used.get(name)
        if kind is None:
            return value, []
        if isinstance(kind, BooleanType):
            found, what = value.try_cast("boolean"), "true or false"
        else:
            found = F.when(value.rlike(rf"^\s*{NUMBER}\s*$"), value.try_cast("double"))
            what = "a number"
        return found, [F.when(value.isNotNull() & found.isNull(), F.lit(f"{name} is not {what}"))]


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
            raise InputError(f"{setting} names {name}; write `{name}` in backquotes if it is one column")
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


def evaluation_error(text: str) -> InputError | None:
    """The error of a condition that fails for a row, such as a division by zero, from Spark's message; else None."""
    found = re.search(r"\[[\w.]+\] (.+?)(?: If necessary set .*)? SQLSTATE: \w+\s+== SQL .*?==\n(.+)", text)
    if not found:
        return None
    return InputError(f"the condition {found[2].strip()!r} fails for a row: {found[1].rstrip('.')}")


def _used_as(expression: Any) -> dict[str, DataType]:
    """Text columns that an expression converts to numbers or booleans, with double or boolean."""
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
        wanted = DataType.fromDDL(node.dataType().sql())
        if isinstance(wanted, NumericType):
            found[child.name()] = DoubleType()
        elif isinstance(wanted, BooleanType):
            found.setdefault(child.name(), BooleanType())
    return found


def _nodes(expression: Any) -> Iterator[Any]:
    yield expression
    for child in _sequence(expression.children()):
        yield from _nodes(child)


def _sequence(found: Any) -> Iterator[Any]:
    return (found.apply(place) for place in range(found.size()))


def _reason(error: PySparkException) -> str:
    """Spark's message in one line, without its codes."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [first_line(error)]
    text = re.sub(r"^\[[\w.]+\] *", "", lines[0])
    return re.sub(r" *SQLSTATE: \w+.*$", "", text).strip().rstrip(".;")
