"""docs/settings.md is up to date with the code."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "settings_page.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"](), "run: make settings-page"
