"""Other image sizes: PE on another grid, everything else as it was."""
import copy

import pytest
import torch
from runs import one_line, run
from test_dense import vit

from mpvg_minimal import fold_last_pe, resize_pe
from mpvg_minimal.layerwise_pe import sincos2d


@pytest.mark.parametrize("options", [dict(pe="mpvg"), dict(pe="lape", pool="cls"), dict(pe="none"),
                                     dict(pe="mpvg", pe_init="sincos2d")], ids=str)
def test_the_same_size_gives_bitwise_the_same_logits(options):
    model = vit(16, **options).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(resize_pe(model, 16)(images), model(images))


def test_a_plane_of_values_stays_a_plane_and_the_class_tokens_row_stays_itself():
    """Bicubic interpolation is exact for what is linear in the place, away from the border."""
    model = vit(32, pool="cls")
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    with torch.no_grad():
        model.pe.pos_embed[0, 1:] = (3 * row + column).flatten()[:, None]
    resized = resize_pe(model, (64, 96))
    assert resized.patch_embed.grid == (16, 24) and resized.pe.pos_embed.shape == (1, 1 + 16 * 24, 16)
    assert torch.equal(resized.pe.pos_embed[0, 0], model.pe.pos_embed[0, 0])
    places = resized.pe.pos_embed[0, 1:, 0].view(16, 24)
    row, column = (torch.arange(16) + 0.5) / 2 - 0.5, (torch.arange(24) + 0.5) / 3 - 0.5    # in units of old patches
    expected = 3 * row[:, None] + column[None]
    torch.testing.assert_close(places[6:10, 9:15], expected[6:10, 9:15], rtol=1e-5, atol=1e-5)
    assert model.pe.pos_embed.shape == (1, 65, 16)                          # the model itself is untouched


def test_delivered_pes_follow_and_everything_learns():
    model = resize_pe(vit(16, pe="mpvg"), (32, 24))
    input_pe, block_pes, last_pe = model.pe()
    assert input_pe.shape == last_pe.shape == block_pes[1].shape == (1, 48, 16)
    torch.testing.assert_close(block_pes[1], torch.nn.functional.layer_norm(input_pe, (16,), eps=1e-6))
    model(torch.randn(2, 3, 32, 24)).sum().backward()
    assert model.pe.pos_embed.grad.abs().sum() > 0


def test_sincos_pe_is_computed_anew():
    for pool, rows in (("gap", 0), ("cls", 1)):
        resized = resize_pe(vit(16, pe_init="sincos2d", pool=pool), 24)
        assert torch.equal(resized.pe.pos_embed[:, rows:], sincos2d((6, 6), 16))
        assert torch.equal(resized.pe.pos_embed[:, :rows], torch.zeros(1, rows, 16))
        fresh = vit(24, pe_init="sincos2d", pool=pool)
        fresh.load_state_dict(resized.state_dict())
        images = torch.randn(2, 3, 24, 24)
        assert torch.equal(fresh(images), resized(images))


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"patch size 4 does not divide image size \(18, 18\)"):
        resize_pe(vit(16), 18)
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\).*\(B, 3, 24, 24\)"):
        resize_pe(vit(16), 24)(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="folded"):
        resize_pe(fold_last_pe(vit(16)), 24)


def test_fine_tuning_at_another_size_begins_where_the_checkpoint_ended(finished, tmp_path):
    data, first, second = finished / "data", finished / "folder" / "checkpoint.pt", tmp_path / "second"
    flags = ("train_imagenet", "--data-dir", data, "--epochs", 1, "--batch-size", 12, "--workers", 0, "--init", first,
             "--image-size", 48, "--out", second)
    one_line(run(*flags, "--pvg"), "mpvg")
    assert run(*flags, "--lr", "1e-12").code == 0                   # a step this small changes nothing that shows
    before, after = (torch.load(file, weights_only=True) for file in (first, second / "checkpoint.pt"))
    assert after["settings"]["pe"] == "mpvg" and after["settings"]["image_size"] == 48
    assert after["model"]["pe.pos_embed"].shape == (1, 36, 96) and before["model"]["pe.pos_embed"].shape == (1, 16, 96)
    for name, weights in before["model"].items():
        if name != "pe.pos_embed":
            torch.testing.assert_close(after["model"][name], weights, rtol=1e-4, atol=1e-6)
    tested = run("train_imagenet", "--data-dir", data, "--eval", second / "checkpoint.pt", "--workers", 0)
    assert f"test accuracy: {after['history'][-1]['top1']:.2f} %" in tested.out


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_pe_is_interpolated_in_float32(dtype):
    model = vit(16).to(dtype)
    expected = resize_pe(copy.deepcopy(model).float(), 24).pe.pos_embed
    resized = resize_pe(model, 24).pe.pos_embed
    assert resized.dtype == dtype and torch.equal(resized, expected.to(dtype))
