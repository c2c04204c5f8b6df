import pytest

from pnfrec_dist.losses import chunks


@pytest.fixture(params=[1 << 21, 10], ids=["one chunk", "chunks"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses over some items compute all targets at once, and then one or two at a time."""
    monkeypatch.setattr(chunks, "CHUNK_LOGITS", request.param)
