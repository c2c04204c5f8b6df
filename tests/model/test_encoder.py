import math
from dataclasses import replace

import numpy as np
import torch

from pnfrec_dist.config.settings import EncoderSettings
from pnfrec_dist.model.encoder import Encoder, initialize

SETTINGS = EncoderSettings(hidden_size=6, num_blocks=2, num_heads=2, max_length=7, dropout=0.0)


def encoder(settings: EncoderSettings = SETTINGS) -> Encoder:
    """In float64, with random values in every parameter, because identities would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    model = Encoder(settings).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.7, generator=generator)
    return model.eval()


def encode(model: Encoder, x_BLD: torch.Tensor) -> torch.Tensor:
    """One group of users of the same length."""
    users, length, _ = x_BLD.shape
    return model(x_BLD.flatten(0, 1), ((users, length),)).unflatten(0, (users, length))


def inputs(length: int = 7, users: int = 3) -> torch.Tensor:
    return torch.randn(users, length, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def test_no_position_sees_the_future() -> None:
    """The gradient of any hidden state with respect to a later input is exactly zero."""
    model, x_BLD = encoder(), inputs().requires_grad_()
    for position in range(7):
        (gradient,) = torch.autograd.grad(encode(model, x_BLD)[:, position].sum(), x_BLD)
        assert (gradient[:, position + 1 :] == 0).all()
        assert (gradient[:, : position + 1] != 0).any(dim=-1).all()


def test_a_sign_changes_no_earlier_state() -> None:
    """It changes that of its own token and those of all later ones."""
    model, x_BLD = encoder(replace(SETTINGS, history="signed", max_length=4)), inputs(users=1)
    likes_P = torch.zeros(7, dtype=torch.bool)
    without_PD = model(x_BLD[0], ((1, 7),), likes_P)
    for position in range(7):
        is_disliked_P = likes_P.clone()
        is_disliked_P[position] = True
        changed_P = (model(x_BLD[0], ((1, 7),), is_disliked_P) != without_PD).any(dim=1)
        assert changed_P.tolist() == [place >= position for place in range(7)]


def test_padding_changes_nothing() -> None:
    """Padding of any content and length does not change the hidden states of the real positions."""
    model, x_BLD = encoder(), inputs()
    short = encode(model, x_BLD[:, :4])
    padded = encode(model, torch.cat([x_BLD[:, :4], torch.zeros(3, 3, 6, dtype=torch.float64)], dim=1))
    noisy = encode(model, torch.cat([x_BLD[:, :4], 1e3 * torch.ones(3, 3, 6, dtype=torch.float64)], dim=1))
    torch.testing.assert_close(padded[:, :4], short, rtol=0, atol=1e-13)
    assert torch.equal(padded[:, :4], noisy[:, :4])


def test_groups_change_nothing() -> None:
    """Users of lengths 2, 5 and 7 in one pack give the same as each of them alone."""
    model = encoder()
    parts = [inputs(length, users) for length, users in ((2, 3), (5, 1), (7, 2))]
    groups = tuple((len(x_GLD), x_GLD.shape[1]) for x_GLD in parts)
    packed_PD = model(torch.cat([x_GLD.flatten(0, 1) for x_GLD in parts]), groups)
    alone_PD = torch.cat([encode(model, x_1LD[None]).flatten(0, 1) for x_GLD in parts for x_1LD in x_GLD])
    torch.testing.assert_close(packed_PD, alone_PD, rtol=0, atol=1e-13)


def test_equals_the_definition_written_slowly() -> None:
    """q = LN(x); x = q + Attn(q, x, x); x = LN(x); x = x + FFN(x), position by position and head by head."""
    model, x_BLD = encoder(), inputs()
    weight = {name: p.detach().numpy() for name, p in model.named_parameters()}

    def norm(v: np.ndarray, name: str) -> np.ndarray:
        scaled = (v - v.mean()) / math.sqrt(v.var() + 1e-8)
        return scaled * weight[f"{name}.weight"] + weight[f"{name}.bias"]

    def linear(v: np.ndarray, name: str) -> np.ndarray:
        return weight[f"{name}.weight"] @ v + weight[f"{name}.bias"]

    for user in range(3):
        x = [x_BLD[user, t].numpy() * math.sqrt(6) + weight["positions.weight"][t] for t in range(7)]
        for b in range(2):
            name = f"blocks.{b}"
            q = [norm(v, f"{name}.attention_norm") for v in x]
            queries = [linear(v, f"{name}.query") for v in q]
            keys = [linear(v, f"{name}.key_value")[:6] for v in x]
            values = [linear(v, f"{name}.key_value")[6:] for v in x]
            for t in range(7):
                mixed = np.zeros(6)
                for head in (slice(0, 3), slice(3, 6)):
                    scores = [math.exp(queries[t][head] @ keys[s][head] / math.sqrt(3)) for s in range(t + 1)]
                    for s in range(t + 1):
                        mixed[head] += scores[s] / sum(scores) * values[s][head]
                x[t] = norm(q[t] + linear(mixed, f"{name}.output"), f"{name}.feed_forward_norm")
                inner = np.maximum(linear(x[t], f"{name}.feed_forward.0"), 0)
                x[t] = x[t] + linear(inner, f"{name}.feed_forward.3")
        expected = np.stack([norm(v, "norm") for v in x])
        np.testing.assert_allclose(encode(model, x_BLD)[user].detach().numpy(), expected, rtol=0, atol=1e-11)


def test_dropout_acts_in_training_alone() -> None:
    model = encoder(EncoderSettings(hidden_size=6, num_blocks=1, max_length=7, dropout=0.5))
    x_BLD = inputs()
    assert torch.equal(encode(model, x_BLD), encode(model, x_BLD))
    model.train()
    assert not torch.equal(encode(model, x_BLD), encode(model, x_BLD))


def test_initial_weights_follow_the_authors_and_the_generator_alone() -> None:
    def fresh(seed: int) -> Encoder:
        model = Encoder(EncoderSettings(hidden_size=64, max_length=50))
        initialize(model, torch.Generator().manual_seed(seed))
        return model

    first, again, other = fresh(1), fresh(1), fresh(2)
    attention = torch.nn.MultiheadAttention(64, 1).in_proj_weight  # the authors' code keeps torch's initial values here
    for (name, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
        if name.endswith("bias"):
            assert (a == 0).all()
        elif "norm" in name:
            assert (a == 1).all()
        elif "query" in name or "key_value" in name:
            assert abs(a.std().item() - attention.std().item()) < 0.05 * attention.std().item()
            assert a.abs().max() <= math.sqrt(1.5 / 64)
        else:
            assert abs(a.std().item() - 0.02) < 0.002
    assert not torch.equal(first.positions.weight, other.positions.weight)
    assert not torch.equal(first.blocks[0].query.weight, first.blocks[1].query.weight)  # type: ignore[union-attr]
