"""gBCE against its formula in plain Python."""

import math

import pytest
from helpers.sampled import ITEMS, TARGETS_T, WIDTH, item_table, of_samples, sample, settings
from helpers.slow_losses import random

from pnfrec_dist.losses.gbce import GBCE


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_equals_its_formula(calibration: float) -> None:
    hidden_TD, table = random(6, WIDTH), item_table()
    table_VD = table.weight.detach()
    drawn = {2: 3, 4: 1, 8: 1}
    some = sample(drawn)
    _, loss_T = GBCE(of_samples(hidden_TD, table, some), table, settings(gbce_calibration=calibration))
    share = 5 / (ITEMS - 1)
    power = share * (calibration * (1 - 1 / share) + 1 / share)
    assert calibration or power == pytest.approx(1.0)

    def sigmoid(v: float) -> float:
        return 1 / (1 + math.exp(-v))

    for h, target, loss in zip(hidden_TD, TARGETS_T.tolist(), loss_T.tolist(), strict=True):
        expected = -math.log(sigmoid(float(h @ table_VD[target])) ** power)
        expected -= sum(m * math.log(1 - sigmoid(float(h @ table_VD[j]))) for j, m in drawn.items() if j != target)
        assert loss == pytest.approx(expected, abs=1e-12)
