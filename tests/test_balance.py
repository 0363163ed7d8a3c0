import numpy as np
import pytest
import torch
from equations import NAMED, every_pool, name, random_images, tiny, trace

from mpvg_minimal import PESchedule, counterbalance, vit_nano

MEASURED = [NAMED["none"], NAMED["lape"], NAMED["pvg"], NAMED["mpvg"], (False, 3, False, "delivered"),
            (False, None, False, "initial")]
CORRELATIONS = ("correlation", "cosine", "stream_correlation", "stream_cosine", "shared_correlation",
                "place_correlation")


def row_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.sqrt((a ** 2).sum(1) * (b ** 2).sum(1))


@every_pool
@pytest.mark.parametrize("switches", MEASURED, ids=name)
def test_counterbalance_from_scratch(switches, pool):
    model, images = tiny(switches, pool), random_images(5)
    expected = trace(model, images, switches)
    measured = counterbalance(model, images)
    assert [b.place for b in measured] == ["block 1", "block 2", "block 3", "last norm"]
    for balance, x, y, pe in zip(measured, expected.stream, expected.normed, expected.pes):
        y, x = y.detach().numpy().mean(0), x.detach().numpy().mean(0)
        np.testing.assert_allclose(balance.tokens, y, rtol=0, atol=1e-10)
        np.testing.assert_allclose(balance.stream, x, rtol=0, atol=1e-10)
        name = "last_norm.token_norm" if balance.place == "last norm" else f"blocks.{int(balance.place[-1]) - 1}.norm1"
        beta = model.state_dict()[f"{name}.bias"].numpy()
        np.testing.assert_array_equal(balance.beta, beta)
        assert balance.norm_cosine == pytest.approx(row_cosines(x.reshape(1, -1), y.reshape(1, -1))[0], abs=1e-10)
        if pe is None:
            assert [getattr(balance, key) for key in CORRELATIONS] == [None] * len(CORRELATIONS)
            np.testing.assert_array_equal(balance.shift, beta)
            continue
        pe = pe.detach().numpy()
        np.testing.assert_allclose(balance.pe, pe, rtol=0, atol=1e-10)
        assert balance.correlation == pytest.approx(np.corrcoef(y.ravel(), pe.ravel())[0, 1], abs=1e-10)
        assert balance.stream_correlation == pytest.approx(np.corrcoef(x.ravel(), pe.ravel())[0, 1], abs=1e-10)
        assert balance.cosine == pytest.approx(row_cosines(y, pe).mean(), abs=1e-10)
        assert balance.stream_cosine == pytest.approx(row_cosines(x, pe).mean(), abs=1e-10)
        both, rest = np.corrcoef(y.mean(0), pe.mean(0)), np.corrcoef((y - y.mean(0)).ravel(), (pe - pe.mean(0)).ravel())
        assert balance.shared_correlation == pytest.approx(both[0, 1], abs=1e-10)
        assert balance.place_correlation == pytest.approx(rest[0, 1], abs=1e-10)
        np.testing.assert_allclose(balance.shift, beta + pe.mean(0), rtol=0, atol=1e-10)


@torch.no_grad()
def test_under_gap_beta_and_pe_at_the_last_norm_are_one_shift():
    """A model without PE at the last norm, whose beta is the shift, gives the same logits."""
    model, other, images = tiny("mpvg"), tiny("pvg"), random_images(3)
    weights = {key: weight for key, weight in model.state_dict().items() if "last_norm.pe_norm" not in key}
    other.load_state_dict(weights | {"last_norm.token_norm.bias": counterbalance(model, images)[-1].shift})
    torch.testing.assert_close(other(images), model(images), rtol=0, atol=1e-10)
    assert (other(images) - tiny("pvg")(images)).abs().max() > 0.01


def test_counterbalance_does_not_depend_on_the_batch_size():
    model, images = tiny("mpvg"), random_images(5)
    whole, parts = counterbalance(model, images), counterbalance(model, images, batch_size=2)
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a.tokens, b.tokens, rtol=0, atol=1e-12)
        torch.testing.assert_close(a.stream, b.stream, rtol=0, atol=1e-12)
        for key in CORRELATIONS:
            assert getattr(a, key) == pytest.approx(getattr(b, key), abs=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_counterbalance_leaves_no_trace(training):
    model, images = tiny("mpvg", attention_dropout=0.5, stochastic_depth=0.5).train(training), random_images()
    a, b = counterbalance(model, images), counterbalance(model, images)         # in eval mode: no dropout
    assert all(torch.equal(x.tokens, y.tokens) for x, y in zip(a, b))
    with pytest.raises(ValueError, match="images of shape"):
        counterbalance(model, torch.zeros(2, 3, 8, 8).double())
    assert all(module.training == training and not module._forward_hooks for module in model.modules())


def test_counterbalance_in_float32_and_on_the_default_schedule():
    measured = counterbalance(vit_nano(pe=PESchedule()), torch.randn(2, 3, 32, 32))
    assert [b.correlation is None for b in measured] == [True, False, False, False, False]
    assert all(b.tokens.dtype == torch.float64 and -1 <= b.correlation <= 1 for b in measured[1:])
