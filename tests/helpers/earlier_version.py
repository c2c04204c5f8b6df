"""A prepared data set as the earlier version of the schema has it."""

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq

from pnfrec_dist.data.schema import INTERACTIONS, read_manifest, write_manifest
from pnfrec_dist.files.locations import sha256_of


def to_version_3(directory: Path) -> None:
    """Removes what later versions have added."""
    manifest = read_manifest(directory)
    files = []
    for entry in manifest.files:
        path = directory / entry.path
        if entry.path.startswith(("validation/", "test/")):
            pq.write_table(pq.read_table(path).drop_columns([field.name for field in INTERACTIONS]), path)
            entry = dataclasses.replace(entry, bytes=path.stat().st_size, sha256=sha256_of(path))
        files.append(entry)
    counts = {
        stage: {name: number for name, number in numbers.items() if name != "holdout_interactions"}
        for stage, numbers in manifest.counts.items()
    }
    write_manifest(directory, dataclasses.replace(manifest, schema_version=3, counts=counts, files=files))
