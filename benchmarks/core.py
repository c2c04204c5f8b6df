"""python -m benchmarks.core [--out docs]: the large-catalog core beside plain PyTorch; writes benchmarks.md and .svg.

Every measurement runs in a process of its own, on one thread unless its row says otherwise. The ratios are the point,
within one run; what misses its mark is marked.
"""

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks import gpu

CATALOGS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
CURVES = {
    "materialised": "F.cross_entropy on all logits",
    "chunked": "exact, chunked",
    "tiled": "exact, tiled",
    "sampled": "sampled softmax, 1,024 items",
    "sharded": "a training step, table sharded over 2 workers",
}
ROW_SECONDS = 200.0
"""A point of the plot that would take longer, judged by the one before, is left out."""


@dataclass(frozen=True)
class Row:
    what: str
    measured: str
    wanted: str
    met: bool


def case(module: str, **request: Any) -> dict[str, Any]:
    """One measurement in a process of its own."""
    line = [sys.executable, "-m", f"benchmarks.{module}", json.dumps(request)]
    started = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    shown = " ".join(f"{key}={value}" for key, value in request.items())
    print(f"[{time.monotonic() - started:5.0f} s] {shown}", flush=True)
    if done.returncode:
        raise SystemExit(f"{shown} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def softmax_rows() -> list[Row]:
    large = {"case": "softmax", "items": 1_000_000, "width": 64, "targets": 512}
    plain, tiled = (case("cases", path=path, **large, times=2) for path in ("plain", "tiled"))
    middle = {**large, "items": 100_000}
    ours, theirs = (case("cases", path=path, **middle) for path in ("auto", "torch"))
    narrow = case("cases", path="auto", **middle, dtype="bfloat16", times=1)
    memory, seconds = tiled["mib"] / plain["mib"], tiled["seconds"] / plain["seconds"]
    beyond = (tiled["mib"] - tiled["mib_gradient"]) / (plain["mib"] - plain["mib_gradient"])
    faster = theirs["seconds"] / ours["seconds"]
    narrow_time, off = narrow["seconds"] / ours["seconds"], abs(narrow["loss"] / ours["loss"] - 1)
    return [
        Row(
            "exact CE forward + backward, N = 1M, d = 64, T = 512, fp32, beside F.cross_entropy on all logits: extra "
            f"peak memory ({tiled['mib']:.0f} of {plain['mib']:.0f} MiB, of which {tiled['mib_gradient']:.0f} are the "
            f"table's gradient; without it {beyond:.1%})",
            f"{memory:.1%}",
            "<= 6 %",
            memory <= 0.06,
        ),
        Row(
            f"the same: time ({tiled['seconds']:.1f} s of {plain['seconds']:.1f} s)",
            f"{seconds:.2f}x",
            "<= 0.45x",
            seconds <= 0.45,
        ),
        Row(
            "the same with N = 100k beside F.linear_cross_entropy(options=LinearCrossEntropyOptions()) "
            f"({ours['seconds']:.2f} s, {theirs['seconds']:.2f} s)",
            f"{faster:.1f}x faster",
            ">= 5x",
            faster >= 5,
        ),
        Row(
            f"bf16 matmuls beside fp32, N = 100k: time ({narrow['seconds']:.2f} s); loss off by {off:.1e}",
            f"{narrow_time:.2f}x",
            "<= 0.6x, 1e-3",
            narrow_time <= 0.6 and off <= 1e-3,
        ),
    ]


def step_rows() -> list[Row]:
    rows, has_bf16 = [], has_fast_bf16()
    for width, wanted in ((231, 6), (64, 4)):
        plain = case("cases", case="step", kind="plain", width=width, threads=2)
        for precision in ("float32", "bfloat16") if has_bf16 else ("float32",):
            ours = case("cases", case="step", kind="ours", width=width, precision=precision, threads=2)
            peak = case("cases", case="matmul_peak", dtype=precision, width=width, threads=2)["flops"]
            ratio, use = ours["users_per_s"] / plain["users_per_s"], ours["flops"] / peak
            rows += [
                Row(
                    f"training step, ML-1M's shapes, d = {width}, {precision}, 2 threads, beside the plain fp32 step "
                    f"({ours['users_per_s']:.0f} and {plain['users_per_s']:.0f} users/s)",
                    f"{ratio:.1f}x",
                    f">= {wanted}x",
                    ratio >= wanted,
                ),
                Row(
                    f"its useful FLOP/s beside the matmul peak of {precision} ({ours['flops'] / 1e9:.0f} of "
                    f"{peak / 1e9:.0f} GFLOP/s)",
                    f"{use:.0%}",
                    ">= 50 %",
                    use >= 0.5,
                ),
            ]
    return rows


def sharded_rows() -> list[Row]:
    common = {"workers": 2, "items": 1_000_000, "width": 64, "targets": 2048, "steps": 1}
    sharded, replicated = (case("sharded", sharded=flag, **common) for flag in (True, False))
    huge = case("sharded", **(common | {"items": 10_000_000, "targets": 64, "steps": 3}), sharded=True)
    sent = replicated["bytes_sent"] / sharded["bytes_sent"]
    share = sharded["table_bytes"] / replicated["table_bytes"]
    losses = huge["ce_positive"]
    return [
        Row(
            "sharded table, 2 gloo workers, N = 1M, T = 2,048 each: bytes sent a step beside replicated "
            f"({sharded['bytes_sent'] / 2**20:.1f} and {replicated['bytes_sent'] / 2**20:.0f} MiB a worker)",
            f"1/{sent:.0f}",
            "<= 1/50",
            sent >= 50,
        ),
        Row(
            f"the same: table and optimizer bytes of a worker ({sharded['table_bytes'] / 2**20:.0f} MiB)",
            f"{share:.3f}",
            "1/2 +- 5 %",
            abs(share - 0.5) <= 0.025,
        ),
        Row(
            f"N = 10M, d = 64, 2 workers: {len(losses)} steps of {huge['seconds']:.0f} s, CE_p "
            f"{losses[0]:.3f} -> {losses[-1]:.3f}, peak {huge['peak_mib'] / 1024:.1f} GiB a worker",
            "trains" if losses[-1] < losses[0] else "does not learn",
            "trains",
            losses[-1] < losses[0],
        ),
    ]


def feeding_rows() -> list[Row]:
    done = case("cases", case="feeding", items=100_000, width=64, threads=2)
    share = done["batch_seconds"] / done["seconds"]
    return [
        Row(
            "feeding: a batch of 500 users beside a step, N = 100k, d = 64, 2 threads "
            f"({1e3 * done['batch_seconds']:.0f} ms of {done['seconds']:.1f} s; made while the step before runs)",
            f"{share:.2%}",
            "< 1 %",
            share < 0.01,
        )
    ]


def top_k_rows() -> list[Row]:
    common = {"case": "top_k", "items": 1_000_000, "width": 64, "users": 256, "seen": 100}
    ours, plain = (case("cases", method=method, **common) for method in ("ours", "plain"))
    seconds, memory = ours["seconds"] / plain["seconds"], ours["mib"] / plain["mib"]
    ids = "equal" if ours["ids"] == plain["ids"] else "DIFFERENT"
    return [
        Row(
            "top-10 of 256 users, N = 1M, 100 seen each, beside matmul + mask + torch.topk: time "
            f"({ours['seconds']:.2f} s of {plain['seconds']:.2f} s); ids {ids}",
            f"{seconds:.2f}x",
            "<= 0.35x, same ids",
            seconds <= 0.35 and ours["ids"] == plain["ids"],
        ),
        Row(
            f"the same: memory ({ours['mib']:.0f} of {plain['mib']:.0f} MiB)",
            f"{memory:.1%}",
            "<= 2 %",
            memory <= 0.02,
        ),
    ]


def gpu_rows() -> list[Row]:
    """On a machine with a GPU; its rows stay on the page when another part is measured elsewhere."""
    if not torch.cuda.is_available():
        return []
    name, rows = torch.cuda.get_device_name(), []
    for width in (64, 128):
        shape = {"case": "softmax", "items": 1_000_000, "width": width, "targets": 32_768}
        ours, tiled = (case("gpu", path=path, **shape) for path in ("auto", "tiled"))
        beyond = ours["mib"] - ours["mib_gradient"]
        theirs = case("gpu", path=gpu.THEIRS, **shape) if gpu.has_theirs() else None
        ratio = ours["seconds"] / theirs["seconds"] if theirs else float("nan")
        beside = (
            f"cut-cross-entropy {theirs['seconds']:.3f} s" if theirs else "pip install cut-cross-entropy to compare"
        )
        rows += [
            Row(
                f"{name}: exact CE, T = 32k, N = 1M, d = {width}, bf16: peak memory beyond the table's gradient",
                f"{beyond / 1024:.2f} GiB",
                "<= 1 GB",
                beyond * 2**20 <= 1e9,
            ),
            Row(
                f"the same: time ({ours['seconds']:.3f} s, in tiles {tiled['seconds']:.3f} s, {beside})",
                f"{ratio:.2f}x",
                "<= 1.0x",
                ratio <= 1.0,
            ),
        ]
    done = case("gpu", case="step", items=100_000, width=256)
    use = done["flops"] / case("gpu", case="matmul_peak", dtype="bfloat16", width=256)["flops"]
    what = f"{name}: training step, d = 256, N = 100k, bf16 ({done['users_per_s']:.0f} users/s), beside the matmul peak"
    return [*rows, Row(what, f"{use:.0%}", ">= 35 %", use >= 0.35)]


def curves() -> dict[str, list[list[float]]]:
    """(N, seconds, MiB) of each curve, for as long as a point fits the memory and ROW_SECONDS."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    points: dict[str, list[list[float]]] = {name: [] for name in CURVES}
    for name, found in points.items():
        for items in CATALOGS:
            grows = items / found[-1][0] if found else 1.0
            too_long = bool(found) and name != "sampled" and found[-1][1] * grows > ROW_SECONDS
            too_large = name == "materialised" and 3.5 * 4 * 512 * items > memory
            if too_long or too_large:
                continue
            times = 3 if items <= 100_000 or name == "sampled" else 0
            if name == "sharded":
                done = case("sharded", workers=2, items=items, width=64, targets=256, steps=1, sharded=True)
                found.append([items, done["seconds"], done["peak_mib"]])
            else:
                path = "plain" if name == "materialised" else name
                done = case("cases", case="softmax", path=path, items=items, width=64, targets=512, times=times)
                found.append([items, done["seconds"], done["mib"]])
    return points


def draw(points: dict[str, list[list[float]]], file: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for axis, column, label in zip(axes, (1, 2), ("seconds", "peak MiB"), strict=True):
        for name, found in points.items():
            axis.loglog([p[0] for p in found], [p[column] for p in found], marker="o", label=CURVES[name])
        axis.set_xlabel("items in the catalog")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


@functools.cache
def has_fast_bf16() -> bool:
    """Whether a bf16 matmul beats that in fp32 on this processor."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(512, 512, dtype=dtype)
        torch.mm(square, square)
        started = time.perf_counter()
        torch.mm(square, square)
        seconds.append(time.perf_counter() - started)
    return seconds[1] < seconds[0]


def machine(has_bf16: bool) -> str:
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{processor}, {os.cpu_count()} cores, {gib:.0f} GiB, {torch.backends.cpu.get_cpu_capability()}, "
        f"{'with' if has_bf16 else 'no'} bf16 instructions; Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}"
    )


def page(results: dict[str, Any]) -> str:
    marks = {True: "yes", False: "**no**"}
    rows = [row for name in PARTS for row in results["rows"].get(name, [])]
    curve_rows = [
        f"| {CURVES[name]} | " + " | ".join(_point(found, items) for items in CATALOGS) + " |"
        for name, found in results["curves"].items()
    ]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"Written by `make bench` (half an hour). {results['machine']}.",
            "One thread unless a row says otherwise; medians; each measurement in a process of its own.",
            "",
            "| what | measured | wanted | met |",
            "|---|---|---|---|",
            *(f"| {row['what']} | {row['measured']} | {row['wanted']} | {marks[row['met']]} |" for row in rows),
            "",
            "## Over the size of the catalog",
            "",
            "Forward and backward of the cross-entropy, d = 64, T = 512, fp32 (sharded: a whole training step, 256",
            "targets on each of 2 workers, and a worker's whole memory). Seconds / peak MiB beyond the start, table's",
            f"gradient included; - where it does not fit this machine or takes over {ROW_SECONDS:.0f} s.",
            "",
            "| | " + " | ".join(f"N = {n:,}" for n in CATALOGS) + " |",
            "|---|" + "---|" * len(CATALOGS),
            *curve_rows,
            "",
            "![seconds and memory over the number of items](benchmarks.svg)",
            "",
        ]
    )


def _point(found: list[list[float]], items: int) -> str:
    return next((f"{seconds:.3g} / {mib:.0f}" for n, seconds, mib in found if n == items), "-")


PARTS: dict[str, Callable[[], list[Row]]] = {
    "softmax": softmax_rows,
    "step": step_rows,
    "sharded": sharded_rows,
    "feeding": feeding_rows,
    "top_k": top_k_rows,
    "gpu": gpu_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="directory of benchmarks.md, .svg and .json")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "curves"], default=[*PARTS, "curves"])
    arguments = parser.parse_args()
    kept = arguments.out / "benchmarks.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"rows": {}, "curves": {}}
    results["machine"] = machine(has_fast_bf16())
    for name in arguments.parts:
        if name == "curves":
            results["curves"] = curves()
        else:
            rows = [asdict(row) for row in PARTS[name]()]
            if rows:
                results["rows"][name] = rows
    draw(results["curves"], arguments.out / "benchmarks.svg")
    kept.write_text(json.dumps(results, indent=1) + "\n")
    notes = arguments.out / "benchmarks-notes.md"
    text = page(results) + ("\n" + notes.read_text() if notes.exists() else "")
    (arguments.out / "benchmarks.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
