"""python -m benchmarks.core [--out docs]: times losses, training steps and ranking beside plain PyTorch.

Writes benchmarks.md, .svg and .json; benchmarks-notes.md is appended to benchmarks.md. Every measurement runs in a
process of its own, on one thread unless its row says otherwise. Compare figures within one run only.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import gpu
from benchmarks.core_page import CATALOGS, CURVES, ROW_SECONDS, Row, draw, page
from benchmarks.machine import processor


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
    all_logits = "`F.cross_entropy` on all logits"
    wide, small = (
        {name: case("cases", path="auto", **shape, dtype=name, threads=2) for name in ("float32", "bfloat16")}
        for shape in ({**large, "times": 3}, {"case": "softmax", "items": 3_412, "width": 231, "targets": 20_000})
    )
    useful = 6 * 3_412 * 231 * 20_000 / 1e9
    return [
        Row(
            "exact CE, forward and backward, N = 1M, d = 64, T = 512, fp32: extra peak memory "
            f"({tiled['mib_gradient']:.0f} MiB of it are the table's gradient; without it the ratio is {beyond:.1%})",
            f"{tiled['mib']:.0f} MiB",
            all_logits,
            f"{plain['mib']:.0f} MiB",
            f"{memory:.1%}",
        ),
        Row("the same: time", f"{tiled['seconds']:.1f} s", all_logits, f"{plain['seconds']:.1f} s", f"{seconds:.2f}x"),
        Row(
            "the same with N = 100k: time",
            f"{ours['seconds']:.2f} s",
            "`F.linear_cross_entropy(options=LinearCrossEntropyOptions())`",
            f"{theirs['seconds']:.2f} s",
            f"1/{faster:.1f}",
        ),
        Row(
            f"the same with bf16 matmuls, N = 100k: time (the loss differs by {off:.1e})",
            f"{narrow['seconds']:.2f} s",
            "fp32 matmuls",
            f"{ours['seconds']:.2f} s",
            f"{narrow_time:.2f}x",
        ),
        Row(
            "the same with N = 1M, bf16, 2 threads: time",
            f"{wide['bfloat16']['seconds']:.2f} s",
            "fp32 matmuls",
            f"{wide['float32']['seconds']:.2f} s",
            f"{wide['bfloat16']['seconds'] / wide['float32']['seconds']:.2f}x",
        ),
        Row(
            "exact CE, N = 3,412, d = 231, T = 20,000, bf16, 2 threads: useful FLOP/s",
            f"{useful / small['bfloat16']['seconds']:.0f} GFLOP/s",
            "fp32 matmuls",
            f"{useful / small['float32']['seconds']:.0f} GFLOP/s",
            f"{small['float32']['seconds'] / small['bfloat16']['seconds']:.1f}x",
        ),
    ]


def step_rows() -> list[Row]:
    rows, has_bf16 = [], has_fast_bf16()
    for width in (231, 64):
        plain = case("cases", case="step", kind="plain", width=width, threads=2)
        steps: dict[str, float] = {}
        for precision in ("float32", "bfloat16") if has_bf16 else ("float32",):
            ours = case("cases", case="step", kind="ours", width=width, precision=precision, threads=2)
            peak = case("cases", case="matmul_peak", dtype=precision, width=width, threads=2)["flops"]
            ratio, use = ours["users_per_s"] / plain["users_per_s"], ours["flops"] / peak
            steps[precision] = ours["users_per_s"]
            rows += [
                Row(
                    f"training step, ML-1M's shapes, d = {width}, {precision}, 2 threads: speed",
                    f"{ours['users_per_s']:.0f} users/s",
                    "plain fp32 step",
                    f"{plain['users_per_s']:.0f} users/s",
                    f"{ratio:.1f}x",
                ),
                Row(
                    "the same: useful FLOP/s",
                    f"{ours['flops'] / 1e9:.0f} GFLOP/s",
                    f"matmul peak of {precision}",
                    f"{peak / 1e9:.0f} GFLOP/s",
                    f"{use:.0%}",
                ),
            ]
        if has_bf16:
            what = f"training step, ML-1M's shapes, d = {width}, bf16, 2 threads: speed"
            narrow, wide = steps["bfloat16"], steps["float32"]
            rows.append(
                Row(what, f"{narrow:.0f} users/s", "our step in fp32", f"{wide:.0f} users/s", f"{narrow / wide:.2f}x")
            )
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
            "sharded table, 2 gloo workers, N = 1M, T = 2,048 each: bytes sent per worker and step",
            f"{sharded['bytes_sent'] / 2**20:.1f} MiB",
            "replicated table",
            f"{replicated['bytes_sent'] / 2**20:.0f} MiB",
            f"1/{sent:.0f}",
        ),
        Row(
            "the same: table and optimizer state per worker",
            f"{sharded['table_bytes'] / 2**20:.0f} MiB",
            "replicated table",
            f"{replicated['table_bytes'] / 2**20:.0f} MiB",
            f"{share:.3f}",
        ),
        Row(
            f"sharded table, 2 workers, N = 10M, d = 64: {len(losses)} steps, CE_p {losses[0]:.3f} -> {losses[-1]:.3f}",
            f"{huge['seconds']:.0f} s a step, peak {huge['peak_mib'] / 1024:.1f} GiB a worker",
        ),
    ]


def feeding_rows() -> list[Row]:
    done = case("cases", case="feeding", items=100_000, width=64, threads=2)
    share = done["batch_seconds"] / done["seconds"]
    return [
        Row(
            "making a batch of 500 users (in training: while the step before runs), N = 100k, d = 64, 2 threads: time",
            f"{1e3 * done['batch_seconds']:.0f} ms",
            "the step that reads it",
            f"{done['seconds']:.1f} s",
            f"{share:.2%}",
        )
    ]


def top_k_rows() -> list[Row]:
    common = {"case": "top_k", "items": 1_000_000, "width": 64, "users": 256, "seen": 100}
    ours, plain = (case("cases", method=method, **common) for method in ("ours", "plain"))
    seconds, memory = ours["seconds"] / plain["seconds"], ours["mib"] / plain["mib"]
    ids = "the same lists" if ours["ids"] == plain["ids"] else "DIFFERENT lists"
    other = "matmul, mask, `torch.topk`"
    return [
        Row(
            f"top-10 of 256 users, N = 1M, 100 seen items each: time ({ids})",
            f"{ours['seconds']:.2f} s",
            other,
            f"{plain['seconds']:.2f} s",
            f"{seconds:.2f}x",
        ),
        Row("the same: extra peak memory", f"{ours['mib']:.0f} MiB", other, f"{plain['mib']:.0f} MiB", f"{memory:.1%}"),
    ]


def gpu_rows() -> list[Row]:
    """On a machine with a GPU; its rows stay on the page when another part is measured elsewhere.

    cut-cross-entropy is compared if it is installed.
    """
    if not torch.cuda.is_available():
        return []
    name, rows = torch.cuda.get_device_name(), []
    for width in (64, 128):
        shape = {"case": "softmax", "items": 1_000_000, "width": width, "targets": 32_768}
        ours, tiled = (case("gpu", path=path, **shape) for path in ("auto", "tiled"))
        beyond = ours["mib"] - ours["mib_gradient"]
        theirs = case("gpu", path=gpu.THEIRS, **shape) if gpu.has_theirs() else None
        others = {"our `tiled` path": tiled["seconds"]}
        if theirs:
            others["cut-cross-entropy"] = theirs["seconds"]
        rows += [
            Row(
                f"{name}: exact CE, T = 32k, N = 1M, d = {width}, bf16: peak memory beyond the table's gradient",
                f"{beyond / 1024:.2f} GiB",
            ),
            *(
                Row(
                    "the same: time",
                    f"{ours['seconds']:.3f} s",
                    other,
                    f"{seconds:.3f} s",
                    f"{ours['seconds'] / seconds:.2f}x",
                )
                for other, seconds in others.items()
            ),
        ]
    for shape in GPU_STEPS:
        rows += gpu_step_rows(name, **shape)
    return rows


GPU_STEPS = (
    {"items": 3_412, "width": 64, "batch_size": 500},
    {"items": 3_412, "width": 64, "batch_size": 500, "precision": "float32"},
    {"items": 18_345, "width": 256, "batch_size": 2_000},
    {"items": 100_000, "width": 256, "batch_size": 500},
    {"items": 100_000, "width": 256, "batch_size": 4_000},
    {"items": 1_000_000, "width": 128, "batch_size": 2_000},
)


def gpu_step_rows(name: str, **shape: Any) -> list[Row]:
    """Speed, use of the GPU, waiting and memory of the steps of one shape."""
    done = case("gpu", case="step", **shape)
    precision = shape.get("precision", "bfloat16")
    use = done["flops"] / case("gpu", case="matmul_peak", dtype=precision, width=shape["width"])["flops"]
    what = f"{name}: training step, ML-1M's lengths, N = {shape['items']:,}, d = {shape['width']}"
    return [
        Row(
            f"{what}, {shape['batch_size']:,} users, {precision}: speed (ratio: useful FLOP/s)",
            f"{done['users_per_s']:,.0f} users/s",
            f"matmul peak of {precision}",
            "-",
            f"{use:.0%}",
        ),
        Row("the same: waiting for batches", f"{done['waiting']:.1%} of the time"),
        Row(
            "the same: peak memory",
            f"{done['mib']:,.0f} MiB",
            "the memory plan",
            f"{done['mib_planned']:,.0f} MiB",
            f"{done['mib'] / done['mib_planned']:.2f}x",
        ),
    ]


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
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{processor()}, {os.cpu_count()} cores, {gib:.0f} GiB, {torch.backends.cpu.get_cpu_capability()}, "
        f"{'with' if has_bf16 else 'no'} bf16 instructions; Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}"
    )


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
    text = page(results, PARTS) + ("\n" + notes.read_text() if notes.exists() else "")
    (arguments.out / "benchmarks.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
