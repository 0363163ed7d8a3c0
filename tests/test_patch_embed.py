import numpy as np
import pytest
import torch
from equations import patches

from mpvg_minimal.patch_embed import PatchEmbed


@pytest.mark.parametrize("image_size, patch_size, channels",
                         [((12, 20), 4, 3), ((20, 12), 4, 3), ((6, 9), 3, 1), ((8, 8), 8, 2), ((3, 4), 1, 3)])
def test_a_token_is_a_linear_map_of_its_patch(image_size, patch_size, channels):
    embed = PatchEmbed(image_size=image_size, patch_size=patch_size, width=5, channels=channels).double()
    images = torch.randn(2, channels, *image_size, dtype=torch.float64)
    expected = patches(images, embed.proj.weight, embed.proj.bias, patch_size)
    torch.testing.assert_close(embed(images), expected, rtol=0, atol=1e-12)
    assert embed.grid == (image_size[0] // patch_size, image_size[1] // patch_size)


@pytest.mark.parametrize("size", [12, np.int64(12)])
def test_one_number_is_a_square_image(size):
    embed = PatchEmbed(image_size=size, patch_size=4, width=5)
    assert (embed.image_size, embed.grid) == ((12, 12), (3, 3))


@pytest.mark.parametrize("image_size, shown", [((12, 18), r"\(12, 18\)"), (10, r"\(10, 10\)"), ((2, 4), r"\(2, 4\)"),
                                               ((0, 4), r"\(0, 4\)")])
def test_a_patch_that_does_not_divide_the_image_is_refused(image_size, shown):
    with pytest.raises(ValueError, match=f"patch size 4 .* {shown}"):
        PatchEmbed(image_size=image_size, patch_size=4, width=5)


@pytest.mark.parametrize("shape", [(2, 3, 20, 12), (2, 1, 12, 20), (2, 3, 12, 16), (3, 12, 20), (2, 12, 20, 3)])
def test_other_images_are_refused_by_both_shapes(shape):
    with pytest.raises(ValueError) as caught:
        PatchEmbed(image_size=(12, 20), patch_size=4, width=5)(torch.zeros(shape))
    assert str(shape) in str(caught.value) and "(B, 3, 12, 20)" in str(caught.value)


@pytest.mark.parametrize("options, message", [
    ({"patch_size": 0}, "patch_size is 0, expected a whole number of at least 1"),
    ({"patch_size": 2.5}, "patch_size is 2.5"),
    ({"patch_size": -4}, "patch_size is -4"), ({"width": 0}, "width is 0"), ({"channels": 0}, "channels is 0"),
    ({"image_size": (12, 12, 3)}, r"\(12, 12, 3\), expected one number for both sides or \(height, width\)"),
    ({"image_size": (12,)}, r"image size is \(12,\)"), ({"image_size": 12.0}, "image size is 12.0"),
    ({"image_size": (12.0, 12)}, r"image size is \(12.0, 12\)")])
def test_sizes_without_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PatchEmbed(**{**dict(image_size=12, patch_size=4, width=5), **options})
