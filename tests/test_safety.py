"""Reading a file executes nothing: checks the calls in the sources, and opens files that try to run code."""

import ast
import contextlib
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pnfrec_dist.config.conf_files import load_conf
from pnfrec_dist.config.dataset_settings import DatasetSettings
from pnfrec_dist.config.settings import EncoderSettings, LossSettings, Settings, TrainSettings
from pnfrec_dist.data.prepared import open_prepared
from pnfrec_dist.distributed import World
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.content_hash import cache_directory
from pnfrec_dist.files.locations import sha256_of
from pnfrec_dist.training.checkpoint_manager import checkpoints
from pnfrec_dist.training.loop import Hooks, TrainLoop

ROOT = Path(__file__).parents[1]
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "compile", "__import__"}
LOADERS = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("pd", "read_pickle")}
SETTINGS = Settings(
    epochs=2,
    encoder=EncoderSettings(hidden_size=8, num_blocks=1, max_length=5),
    loss=LossSettings(0.45, 0.25),
    train=TrainSettings(batch_size=8),
)


@pytest.mark.parametrize("package", ["pnfrec_dist", "spark_jobs"])
def test_no_source_reads_what_can_execute(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & MODULES, path
            if not isinstance(node, ast.Call):
                continue
            function, keywords = node.func, {k.arg: k.value for k in node.keywords}
            if isinstance(function, ast.Name):
                assert function.id not in CALLS, f"{path}:{node.lineno}"
            elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                assert (function.value.id, function.attr) not in LOADERS, f"{path}:{node.lineno}"
            allowed = keywords.get("allow_pickle")
            assert allowed is None or (isinstance(allowed, ast.Constant) and allowed.value is False), path
            shell = keywords.get("shell")
            assert shell is None, f"{path}:{node.lineno}"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


def train(prepared: Path, run_dir: Path) -> None:
    torch.set_num_threads(1)
    hooks = Hooks(lambda _: None, lambda: False)
    TrainLoop(SETTINGS, open_prepared(prepared), run_dir, World(), hooks).run()


def replace_checked(directory: Path, name: str, content: bytes) -> None:
    """Replaces a file of a checkpoint and updates the checksums, so that they do not detect it."""
    checksums = json.loads((directory / "checksums.json").read_text())
    (directory / name).write_bytes(content)
    if name in checksums:
        checksums[name] = hashlib.sha256(content).hexdigest()
        (directory / "checksums.json").write_text(json.dumps(checksums))
    (directory / "COMMITTED").write_text(sha256_of(directory / "checksums.json") + "\n")


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.safetensors", "items-00000-of-00001.safetensors", "state.json", "checksums.json"],
)
@pytest.mark.parametrize("form", ["pickle", "torch.save"])
def test_a_hostile_checkpoint_executes_nothing(prepared: Path, tmp_path: Path, name: str, form: str) -> None:
    victim = tmp_path / "executed"
    train(prepared, tmp_path / "run")
    (tmp_path / "hostile").write_bytes(pickle.dumps(Payload(victim)))
    if form == "torch.save":
        torch.save({"weight": Payload(victim)}, tmp_path / "hostile")
    for path in checkpoints(tmp_path / "run"):
        replace_checked(path, name, (tmp_path / "hostile").read_bytes())
    with contextlib.suppress(InputError):
        train(prepared, tmp_path / "run")
    assert not victim.exists()


def test_a_hostile_cache_executes_nothing(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "executed"
    monkeypatch.setenv("PNFREC_CACHE", str(tmp_path / "cache"))
    open_prepared(prepared).train()
    (directory,) = cache_directory().glob("tiny-*")
    array = np.empty(1, dtype=object)
    array[0] = Payload(victim)
    for file in directory.glob("*.npy"):
        np.save(file, array, allow_pickle=True)
    checksums = {file.name: sha256_of(file) for file in directory.glob("*.npy")}
    (directory / "checksums.json").write_text(json.dumps(checksums))
    with contextlib.suppress(InputError, ValueError):
        open_prepared(prepared).train()
    assert not victim.exists()


def test_a_hostile_shard_executes_nothing(prepared: Path, tmp_path: Path) -> None:
    """A shard with metadata like a pickled Arrow type, and a matching manifest."""
    victim = tmp_path / "executed"
    file = prepared / "train/part-00000.parquet"
    table = pq.read_table(file)
    hostile = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": ""}
    fields = [field.with_metadata(hostile | {"ARROW:extension:metadata": "x"}) for field in table.schema]
    payload = pickle.dumps(Payload(victim))
    fields[0] = fields[0].with_metadata(
        {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
    )
    pq.write_table(table.cast(pa.schema(fields, metadata={b"pandas": payload})), file)
    manifest = json.loads((prepared / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "train/part-00000.parquet":
            entry.update(bytes=file.stat().st_size, sha256=sha256_of(file))
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    with contextlib.suppress(InputError):
        open_prepared(prepared).train()
    assert not victim.exists()


@pytest.mark.parametrize("kind", ["dataset", "train"])
def test_a_hostile_yaml_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    victim = tmp_path / "executed"
    (tmp_path / "conf" / kind).mkdir(parents=True)
    (tmp_path / "conf" / kind / "x.yaml").write_text(f'epochs: !!python/object/apply:os.system ["touch {victim}"]\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        load_conf(kind, "x", Settings() if kind == "train" else DatasetSettings())
    assert not victim.exists()


def test_the_payload_would_execute(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()
