"""Images to tokens: cut the image into patches and map each patch linearly to a token.

A convolution whose stride equals its kernel size sees every patch exactly once and no two patches
together, so it IS one linear map applied to every patch. That is how every ViT implements it.

Source: Dosovitskiy et al. 2021 (ViT), Eq. 1, without the position embedding: that is layerwise_pe.py.
Shapes: B images, H x W their height and width in pixels, P patch size, N tokens, D width.
"""
from torch import Tensor, nn


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """One number for both sides, or (height, width) as it is. ValueError for anything else."""
    sides = (size, size) if hasattr(size, "__index__") else size
    if not isinstance(sides, (tuple, list)) or [hasattr(side, "__index__") for side in sides] != [True, True]:
        raise ValueError(f"image size is {size}, expected one number for both sides or (height, width)")
    return tuple(sides)


def check_sizes(**sizes: int) -> None:
    """ValueError that names the first of these sizes that is not a whole number of at least 1."""
    for name, size in sizes.items():
        if not hasattr(size, "__index__") or size < 1:              # what counts as whole in Python; NumPy too
            raise ValueError(f"{name} is {size!r}, expected a whole number of at least 1")


class PatchEmbed(nn.Module):
    """(B, channels, H, W) images -> (B, N, D) tokens, N = (H / P) * (W / P), row by row.

    `grid` is (H / P, W / P). ValueError if P does not divide the image, at construction, or if the
    images that arrive have another size or number of channels than the ones it was built for.
    """

    def __init__(self, *, image_size: int | tuple[int, int], patch_size: int, width: int, channels: int = 3):
        super().__init__()
        check_sizes(patch_size=patch_size, width=width, channels=channels)
        self.channels, self.patch_size = channels, patch_size
        self.set_image_size(image_size)
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def set_image_size(self, image_size: int | tuple[int, int]) -> None:
        """Take images of this size from now on: the convolution does not depend on it. ValueError as above."""
        size, patch_size = pair(image_size), self.patch_size
        if any(side < patch_size or side % patch_size for side in size):
            raise ValueError(f"patch size {patch_size} does not divide image size {size}: choose a multiple")
        self.image_size, self.grid = size, (size[0] // patch_size, size[1] // patch_size)

    def forward(self, images: Tensor) -> Tensor:
        expected = (self.channels, *self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"images of shape {tuple(images.shape)}, but this model takes (B, {expected[0]}, "
                             f"{expected[1]}, {expected[2]}): resize them or build the model with another image_size")
        x = self.proj(images)                       # (B, 3, H, W) -> (B, D, H / P, W / P)
        # contiguous, as every sum x + ... keeps the layout of x: in the convolution's, D before N, norms would copy x
        return x.flatten(2).transpose(1, 2).contiguous()            # (B, D, H / P, W / P) -> (B, N, D)
