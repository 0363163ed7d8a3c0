"""A1. The expected patches are cut out one by one; the convolution is torch's."""
import pytest
import torch
from expect import Case, agree, close, normal, operations
from student import fail

SIZES = [(2, 3, 4, 6, 2), (1, 1, 6, 3, 3), (3, 2, 4, 4, 4), (2, 4, 2, 3, 1)]                # B, C, H, W, P


def cut(images, patch):
    """Row by row, each patch as a slice of the image: (B, C, H, W) -> [(B, C, P, P), ...]."""
    return [images[:, :, y:y + patch, x:x + patch]
            for y in range(0, images.shape[2], patch) for x in range(0, images.shape[3], patch)]


def joined(patches):
    return torch.stack([patch.flatten(1) for patch in patches], dim=1)


def embedding(B, C, H, W, P, D=5):
    return normal(B, C, H, W), normal(D, C, P, P, seed=1), normal(D, seed=2)


@pytest.mark.points(2)
def test_patches_come_row_by_row(student):
    """part 1: the patches come row by row"""
    for rows, columns in ((2, 3), (3, 1)):
        number = torch.arange(1.0 * rows * columns).view(1, 1, rows, columns)       # the image of the patches' numbers
        image = number.repeat_interleave(2, 2).repeat_interleave(2, 3)              # each as a patch of 2 x 2 pixels
        expected = number.flatten()[:, None].expand(1, -1, 4)
        by_column = number.mT.flatten()[:, None].expand(1, -1, 4)
        close(student.patchify(image, 2), expected, "split H into (H / P, P) and W into (W / P, P), then move the axes "
              "before you flatten", (by_column, "these are the patches column by column: after B comes the row, then "
              "the column"), where=f"{rows} x {columns} patches")


@pytest.mark.points(2)
def test_channels_come_first_in_a_patch(student):
    """part 1: within a patch channel by channel, each row by row"""
    def case(B, C, H, W, P):
        mistakes = [
            (lambda images: joined([patch.movedim(1, -1) for patch in cut(images, P)]),
             "this is (P, P, C): the channels come last, they have to come first"),
            (lambda images: joined([patch.mT for patch in cut(images, P)]),
             "within a channel the pixels come column by column: swap the two axes of length P")]
        return Case(lambda images: student.patchify(images, P), lambda images: joined(cut(images, P)),
                    [normal(B, C, H, W)], mistakes)
    agree(case, SIZES, "the order of a patch's numbers is (C, P, P)")


@pytest.mark.points(1)
def test_a_patch_that_does_not_divide_the_image(student):
    """part 1: ValueError if the patch does not divide the height or the width, and only then"""
    for height, width, patch in ((4, 6, 3), (4, 6, 4), (5, 5, 2), (2, 2, 4)):
        got = "no error"
        try:
            student.patchify(normal(1, 3, height, width), patch)
        except ValueError:
            continue
        except NotImplementedError:
            raise
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
        fail(f"{height} x {width} pixels, patch {patch}: {got}", "a ValueError of your own",
             "test height AND width before you reshape, and raise ValueError")
    try:
        student.patchify(normal(1, 3, 4, 6), 2)
    except ValueError as error:
        fail(f"4 x 6 pixels, patch 2: ValueError: {error}", "no error", "2 divides 4 and 6: images need not be square")


@pytest.mark.points(2)
def test_unpatchify_undoes_it(student):
    """part 2: patches back to images"""
    def case(B, C, H, W, P):
        return Case(lambda patches: student.unpatchify(patches, P, H, W), lambda patches: uncut(patches, C, H, W, P),
                    [joined(cut(normal(B, C, H, W), P))])

    def uncut(patches, C, H, W, P):
        rows = patches.unflatten(2, (C, P, P)).split(W // P, dim=1)
        return torch.cat([torch.cat(list(row.unbind(1)), dim=3) for row in rows], dim=2)
    agree(case, SIZES, "the steps of patchify, backwards: (B, H / P, W / P, C, P, P), move the axes, then flatten")


@pytest.mark.points(2)
def test_one_linear_map_is_the_convolution(student):
    """part 3: the tokens of a strided convolution"""
    def convolution(images, weight, bias):
        maps = torch.nn.functional.conv2d(images, weight, bias, stride=weight.shape[-1])     # (B, D, H / P, W / P)
        return maps.flatten(2).mT

    def case(B, C, H, W, P):
        return Case(student.embed, convolution, embedding(B, C, H, W, P), [
            (lambda images, weight, bias: convolution(images, weight, bias) - bias, "the bias is missing"),
            (lambda *inputs: convolution(*inputs).mT, "this is (B, D, N): tokens come before features")])
    agree(case, SIZES, "flatten each of the D kernels as patchify flattens a patch")


@pytest.mark.points(1)
def test_by_one_matrix_product(student):
    """part 3: one matrix product, no convolution"""
    inputs = embedding(3, 2, 4, 6, 2)
    ran = operations(lambda: student.embed(*inputs))
    convolutions = [name for name in ran if "conv" in name]
    if convolutions:
        fail(f"a convolution ({convolutions[0]})", "one matrix product",
             "write out what the convolution does: each patch, "
             "flattened, times the matrix of the flattened kernels")
    products = sum(ran[name] for name in ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot"))
    if products > 1:
        fail(f"{products} matrix products for 3 images of 6 patches", "one",
             "(B, N, C * P * P) @ (C * P * P, D) maps all "
             "patches of all images at once")
