"""The paper's figures."""

from pathlib import Path

import pytest

from pnfrec_dist.errors import InputError
from pnfrec_dist.experiments.paper_figures import published_figures, published_width


def test_published_figures_are_read_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "published").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert published_figures("ml1m")["pnfrec"]["ndcg_p_at_10"] == 0.1041
    assert published_figures("kion")["sasrec"]["ndcg_delta_at_10"] == 0.0521
    assert published_figures("nothing") == {}
    (tmp_path / "conf" / "published" / "odd.yaml").write_text("pnfrec: [1, 2]\n")
    with pytest.raises(InputError, match=r"odd\.yaml must hold lines of"):
        published_figures("odd")
    (tmp_path / "conf" / "published" / "odd.yaml").write_text("pnfrec: [1, 2, .nan, 3]\n")
    with pytest.raises(InputError, match="not finite"):
        published_figures("odd")


def test_the_published_width_is_known_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "published").mkdir(parents=True)
    (tmp_path / "conf" / "published" / "wide.yaml").write_text("hidden_size: 128\npnfrec: [1, 2, 3, 4]\n")
    assert published_width("wide") == 128 and published_width("nothing") is None
    assert list(published_figures("wide")) == ["pnfrec"]
