"""A description of the build for people: the summary in the terminal, and report.html next to the manifest."""

import html
import textwrap

from pnfrec_dist.config.dataset_settings import ExpectedSettings
from pnfrec_dist.config.source_settings import NONE
from pnfrec_dist.data.schema import Manifest
from pnfrec_dist.files.html_pages import html_table, page, paragraph
from pnfrec_dist.files.tables import GAP, text_table
from spark_jobs.quantile import ranked
from spark_jobs.times import date_of

LENGTHS = ("all", "positive", "negative")
FRACTIONS = {"min": 0.0, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "max": 1.0}
LONGEST_ROW = 300


def length_quantiles(lengths: dict[int, int]) -> dict[str, int]:
    """Quantiles of lengths {length: users}, by the names in FRACTIONS."""
    return dict(zip(FRACTIONS, ranked(lengths, list(FRACTIONS.values())), strict=True))


def negative_share(manifest: Manifest) -> float:
    """Share of negatives among the filtered interactions."""
    size = manifest.counts["filtered"]
    return 1 - size["positives"] / size["rows"]


def compare(manifest: Manifest, expected: ExpectedSettings) -> list[tuple[str, str, str, bool]]:
    """(what, found, expected, equal) for every number in `expected`."""
    counts, size = manifest.counts, manifest.counts["filtered"]
    numbers = [
        ("rows", counts["read"]["rows"], expected.rows),
        ("users", size["users"], expected.users),
        ("items", size["items"], expected.items),
        ("actions", size["rows"], expected.actions),
        ("negative percent", round(100 * negative_share(manifest)), expected.negative_percent),
    ]
    lines = []
    for name, found, known in numbers:
        if known is not None:
            options = {found, counts["train"]["items"]} if name == "items" else {found}
            shown = known if known in options else found
            lines.append((name, f"{shown:,}", f"{known:,}", known in options))
    return lines


def complaint(manifest: Manifest, expected: ExpectedSettings) -> str:
    """A warning if a build differs from its expected numbers; else empty."""
    missed = [(what, found, known) for what, found, known, equal in compare(manifest, expected) if not equal]
    if not missed:
        return ""
    lines = [f"{what}: {found} instead of {known}" for what, found, known in missed]
    return f"{manifest.dataset} differs from a build of the official file: {'; '.join(lines)}"


def summary(manifest: Manifest, expected: ExpectedSettings) -> str:
    """Table 1's columns, split sizes and sequence lengths, as text."""
    blocks = []
    for title, (head, *rows) in _tables(manifest, expected):
        table = textwrap.indent(text_table(head, rows), GAP)
        blocks.append(f"{title}\n{table}" if title else table)
    return "\n\n".join(blocks)


def _rule(manifest: Manifest) -> str:
    """What is positive."""
    feedback = manifest.settings["feedback"]
    if manifest.settings["source"].get("relevance") == NONE and not feedback.get("positive"):
        return "every row is positive"
    if feedback.get("positive"):
        return f"positive is {feedback['positive']}"
    if feedback["threshold"] == "labels":
        return f"positive is {' or '.join(feedback['positive_labels'])}"
    return f"relevance >= {manifest.threshold:g} is positive"


def _holdout(manifest: Manifest) -> str:
    """Which interactions are held out."""
    split, unit = manifest.split_timestamp, manifest.timestamp_unit
    if manifest.has_holdout:
        return f"T = {split} ({date_of(split, unit)})"
    return f"no holdout: all interactions train, the newest is {split - 1} ({date_of(split - 1, unit)})"


def _tables(manifest: Manifest, expected: ExpectedSettings) -> list[tuple[str, list[list[str]]]]:
    """(title, rows) with the first row as header."""
    counts = manifest.counts
    size, train = counts["filtered"], counts["train"]
    tables = [
        (
            f"{manifest.dataset}: {_rule(manifest)}, {_holdout(manifest)}",
            [
                ["users", "items", "actions", "negative"],
                [f"{size['users']:,}", f"{size['items']:,}", f"{size['rows']:,}", f"{negative_share(manifest):.1%}"],
            ],
        )
    ]
    known = compare(manifest, expected)
    if known:
        rows = [[what, found, number, "yes" if equal else "NO"] for what, found, number, equal in known]
        tables.append(("compared with the official file", [["", "found", "expected", "equal"], *rows]))
    rows = [["split", "users", "positive targets", "negative targets", "items", "actions"]]
    rows.append(["train", f"{train['users']:,}", "", "", f"{train['items']:,}", f"{train['rows']:,}"])
    least = manifest.settings["split"]["min_positives"]
    rows.append([f"train, {least}+ likes", f"{counts['train_users']['users']:,}", "", "", "", ""])
    for part in manifest.splits[1:]:
        numbers = counts[part]
        targets = [f"{numbers[f'{side}_targets']:,}" for side in ("positive", "negative")]
        rows.append([part, f"{numbers['users']:,}", *targets, "", f"{numbers['holdout_interactions']:,}"])
    tables.append(("", rows))
    rows = [["history length in train", *FRACTIONS]]
    for kind in LENGTHS:
        rows.append([kind, *(f"{counts[f'length_{kind}'][name]:,}" for name in FRACTIONS)])
    tables.append(("", rows))
    return tables


def render_report(
    manifest: Manifest, expected: ExpectedSettings, figures: str, examples: list[tuple[str, str, str]]
) -> str:
    """The page. figures: the result of draw(); examples: (file, row, reason) of the first quarantined rows."""
    body = [f"<h1>{html.escape(manifest.dataset)}</h1>"]
    wrong = complaint(manifest, expected)
    if wrong:
        body.append(paragraph(wrong, "loud"))
    body += [html_table(head, rows, title) for title, (head, *rows) in _tables(manifest, expected)]
    body.append(figures)
    body.append(html_table(["", "rows"], _accounting(manifest), "Rows of the source"))
    reasons = [(k, n) for k, n in manifest.counts["quarantined"].items() if k != "rows"]
    if reasons:
        ordered = sorted(reasons, key=lambda pair: (-pair[1], pair[0]))
        body.append(html_table(["reason for quarantine", "rows"], [[why, f"{n:,}"] for why, n in ordered]))
        shown = [[file, row[:LONGEST_ROW], reason] for file, row, reason in examples]
        body.append(html_table(["first quarantined rows: file", "row", "reason"], shown, is_text=True))
    sources = [[entry.path, f"{entry.bytes:,}", entry.sha256[:16]] for entry in manifest.sources[:50]]
    body.append(html_table(["file", "bytes", "sha256"], sources, "Source", is_text=True))
    if len(manifest.sources) > len(sources):
        body.append(paragraph(f"and {len(manifest.sources) - len(sources):,} more files", "quiet"))
    body.append(paragraph(f"hashes: settings {manifest.settings_hash[:16]}, content {manifest.digest[:16]}", "quiet"))
    return page(f"{manifest.dataset}: prepared data set", "\n".join(body))


def _accounting(manifest: Manifest) -> list[list[str]]:
    counts = manifest.counts
    names = {
        "interactions": "kept",
        "neither": "neither likes nor dislikes",
        "undone": "taken back",
        "where": "left out by source.where",
        "quarantined": "quarantined",
        "deduplicated": "duplicates",
        "read": "read",
    }
    return [[shown, f"{counts[stage]['rows']:,}"] for stage, shown in names.items() if stage in counts]
