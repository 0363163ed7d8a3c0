"""A1. The expected patches are cut out one by one; the convolution is torch's."""
import pytest
import torch
from expect import close, equal, fail, normal


def cut(images, patch):
    """Row by row, each patch as a slice of the image: (B, C, H, W) -> [(B, C, P, P), ...]."""
    return [images[:, :, y:y + patch, x:x + patch]
            for y in range(0, images.shape[2], patch) for x in range(0, images.shape[3], patch)]


@pytest.mark.points(2)
def test_patches_come_row_by_row(student):
    """part 1: the patches come row by row"""
    number = torch.arange(6.0).view(1, 1, 2, 3)                     # the image of the 6 patches' numbers ...
    image = number.repeat_interleave(2, 2).repeat_interleave(2, 3)  # ... each as a patch of 2 x 2 pixels
    expected = torch.arange(6.0)[:, None].expand(1, 6, 4)
    columns = number.mT.reshape(6, 1).expand(1, 6, 4)
    close(student.patchify(image, 2), expected, "split H into (H / P, P) and W into (W / P, P), then move the axes "
          "before you flatten", (columns, "these are the patches column by column: after B comes the row, then the "
          "column"))


@pytest.mark.points(2)
def test_channels_come_first_in_a_patch(student):
    """part 1: within a patch channel by channel, each row by row"""
    images = normal(2, 3, 4, 6)
    patches = cut(images, 2)
    expected = torch.stack([patch.flatten(1) for patch in patches], dim=1)
    last = torch.stack([patch.movedim(1, -1).flatten(1) for patch in patches], dim=1)
    turned = torch.stack([patch.mT.flatten(1) for patch in patches], dim=1)
    close(student.patchify(images, 2), expected, "the order of a patch's numbers is (C, P, P)",
          (last, "this is (P, P, C): the channels come last, they have to come first"),
          (turned, "within a channel the pixels come column by column: swap the two axes of length P"))


@pytest.mark.points(1)
def test_a_patch_that_does_not_divide_the_image(student):
    """part 1: ValueError for 4 x 6 pixels and patch 3 or 4"""
    for patch, height, width in ((3, 4, 6), (4, 4, 6)):
        try:
            got = student.patchify(normal(1, 3, height, width), patch)
        except ValueError as error:
            if "patch" in str(error) or str(patch) in str(error):
                continue
            got = f"ValueError: {error}"
        fail(f"{height} x {width} pixels, patch {patch}: {got if isinstance(got, str) else 'no error'}",
             "a ValueError of your own, which names the patch size", "test height AND width before you reshape")


@pytest.mark.points(2)
def test_unpatchify_undoes_it(student):
    """part 2: patches back to images that are not square"""
    images = normal(2, 3, 4, 6)
    patches = torch.stack([patch.flatten(1) for patch in cut(images, 2)], dim=1)
    close(student.unpatchify(patches, 2, 4, 6), images, "the steps of patchify, backwards: (B, H / P, W / P, C, P, P), "
          "move the axes, then flatten")


@pytest.mark.points(3)
def test_one_linear_map_is_the_convolution(student):
    """part 3: the tokens of a strided convolution, by one matrix product"""
    images, weight, bias = normal(2, 3, 4, 6), normal(5, 3, 2, 2, seed=1), normal(5, seed=2)
    maps = torch.nn.functional.conv2d(images, weight, bias, stride=2)           # (B, D, H / P, W / P)
    expected = maps.flatten(2).mT
    close(student.embed(images, weight, bias), expected, "flatten each of the D kernels as patchify flattens a patch",
          (expected - bias, "the bias is missing"), (expected.mT, "this is (B, D, N): tokens come before features"))
    equal(student.embed(images[:1], weight, bias).shape[0], 1, "number of images", "embed each image by itself")
