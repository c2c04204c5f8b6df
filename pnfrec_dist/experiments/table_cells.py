"""Spreads and intervals as the text of a table's cell."""

import math

from pnfrec_dist.evaluation.bootstrap import Interval, Spread
from pnfrec_dist.files.text import four


def spread_text(found: Spread | None) -> str:
    """.1066 ± .0053; without an SD, the mean; - for None."""
    if found is None:
        return "-"
    return four(found.mean) + ("" if math.isnan(found.sd) else f" ± {four(found.sd)}")


def interval_text(found: Interval | None) -> str:
    """+.0106 [-.0020, +.0230], bold if it does not contain 0; - for None."""
    if found is None:
        return "-"
    return f"**{found.text}**" if found.excludes_zero else found.text
