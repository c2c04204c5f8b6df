"""The paper's figures, from conf/published/."""

import math

from pnfrec_dist.config.conf_files import conf_content
from pnfrec_dist.errors import InputError
from pnfrec_dist.evaluation.metrics import HEADLINE_METRICS


def published_width(dataset: str) -> int | None:
    """encoder.hidden_size of the published figures; None if it is not known."""
    width = conf_content("published", dataset).get("hidden_size")
    return width if isinstance(width, int) else None


def published_figures(dataset: str) -> dict[str, dict[str, float]]:
    """Model -> metric -> the paper's figure, from conf/published/<dataset>.yaml; empty if there is no such file."""
    content = conf_content("published", dataset)
    content.pop("hidden_size", None)
    try:
        found: dict[str, dict[str, float]] = {}
        for model, values in content.items():
            found[model] = dict(zip(HEADLINE_METRICS, map(float, values), strict=True))
        if not all(math.isfinite(value) for metrics in found.values() for value in metrics.values()):
            raise ValueError("a figure is not finite")
        return found
    except (TypeError, ValueError, AttributeError) as error:
        wanted = f"<model>: [{', '.join(HEADLINE_METRICS)}]"
        raise InputError(f"conf/published/{dataset}.yaml must hold lines of {wanted} ({error})") from error
