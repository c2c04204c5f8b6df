"""What a raw file looks like: a hint for messages about files that do not match the settings."""

import re

import pyarrow as pa

from pnfrec_dist.config.source_settings import SourceSettings
from pnfrec_dist.files.locations import Location

START_BYTES = 1 << 16
SEPARATORS = {",": "','", ";": "';'", "\t": "a tab", "|": "'|'", "::": "'::'"}
MAGIC = {
    b"PAR1": "a Parquet file (source.format: parquet)",
    b"\x1f\x8b": "compressed with gzip; give it the ending .gz",
    b"BZh": "compressed with bzip2; give it the ending .bz2",
    b"(\xb5/\xfd": "compressed with zstd; decompress it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"ORC": "an ORC file; write it as Parquet",
    b"Obj\x01": "an Avro file; write it as Parquet",
}


def looks_like(file: Location, source: SourceSettings) -> str:
    """A clause such as "the file looks like JSON lines (source.format: json)", or "" if there is nothing to say."""
    try:
        with file.filesystem.open_input_stream(file.fs_path) as content:
            start = content.read(START_BYTES)
    except (OSError, pa.ArrowInvalid):
        return ""
    found = next((what for magic, what in MAGIC.items() if start.startswith(magic)), "") or _text(start, source)
    return f"the file looks like {found}" if found else ""


def _text(start: bytes, source: SourceSettings) -> str:
    lines = [line.strip() for line in start.decode("utf-8-sig", errors="replace").splitlines() if line.strip()]
    if not lines:
        return ""
    first = lines[0]
    if re.match(r"<(!doctype|html|\?xml)", first, re.IGNORECASE):
        return "a page of a web site or XML, not a log"
    if first.startswith("["):
        return "one JSON array; write one object per line, for example with: jq -c '.[]'"
    if first.startswith("{"):
        if source.format != "json":
            return "JSON lines (source.format: json)"
        return "" if first.endswith("}") else "JSON objects over several lines; write each on one line: jq -c ."
    if source.format == "json":
        return "delimited text (source.format: csv)"
    counts = {separator: first.count(separator) for separator in SEPARATORS}
    own = counts.pop(source.separator, 0)
    best = max(counts, key=lambda separator: counts[separator] * len(separator))
    if counts[best] > own:
        return f"fields separated by {SEPARATORS[best]} (source.separator)"
    return ""
