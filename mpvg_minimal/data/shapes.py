"""A data set made by code: a grid of colored shapes. The label is WHERE the odd one stands.

Every cell of the grid holds a circle, a square or a triangle. All cells but one hold the same kind, and the label is
the cell of the odd one. Color, size, exact place and background are noise.

The cells are the patches of `vit_nano`, so each token sees one cell. The set of tokens says nothing about the label:
a model without PE cannot beat chance, 1 / cells, whatever it learns. A model with PE can be right every time.

Dense tasks use the mask and the box of each shape. The images depend on the seed alone; nothing is downloaded.
"""
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..runtime.seeding import generator

KINDS = ("circle", "square", "triangle")


class Shapes(Dataset):
    """`shapes[i]` -> (image (3, S, S) uint8, label), S = grid * cell pixels, label in 0 ... grid^2 - 1, row by row.

    All images are drawn at construction, from (seed, split), and the same whatever torch's default dtype is.
    For the dense tasks there are tensors over all images:
    kinds (size, cells): index into `KINDS`
    instances (size, S, S) uint8: 0 for the background, c + 1 for the shape in cell c
    boxes (size, cells, 4): x1, y1, x2, y2 in pixels, the last two exclusive
    """

    def __init__(self, split: str = "train", *, size: int | None = None, seed: int = 0, grid: int = 4, cell: int = 8):
        if split not in ("train", "test"):
            raise ValueError(f'split is {split!r}, expected "train" or "test"')
        size = size if size is not None else {"train": 10_000, "test": 2_000}[split]
        g, cells = generator("shapes", split, seed), grid * grid
        self.classes = [f"row {c // grid + 1}, column {c % grid + 1}" for c in range(cells)]

        self.labels = torch.randint(cells, (size,), generator=g)
        common = torch.randint(len(KINDS), (size,), generator=g)
        odd = (common + torch.randint(1, len(KINDS), (size,), generator=g)) % len(KINDS)
        self.kinds = common[:, None].repeat(1, cells)                           # (size, cells)
        self.kinds[torch.arange(size), self.labels] = odd

        inside = _draw(self.kinds, cell, g)                                     # (size, cells, cell, cell)
        self.boxes = _boxes(inside, grid, cell)                                 # (size, cells, 4)
        number = torch.arange(1, cells + 1, dtype=torch.uint8)[:, None, None]
        self.instances = _tile(inside.to(torch.uint8) * number, grid)           # (size, S, S)

        color = torch.randint(96, 256, (3, size, cells, 1, 1), generator=g, dtype=torch.uint8)
        ground = torch.randint(0, 64, (3, size, cells, cell, cell), generator=g, dtype=torch.uint8)
        painted = torch.where(inside, color, ground)                            # (3, size, cells, cell, cell)
        self.images = torch.stack([_tile(channel, grid) for channel in painted], dim=1)     # (size, 3, S, S)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def _draw(kinds: Tensor, cell: int, g: torch.Generator) -> Tensor:
    """(size, cells) kinds -> (size, cells, cell, cell) bool: which pixels of its cell each shape covers.

    The shapes are so large that even in a cell of 8 pixels a circle and a square cover different pixels.
    """
    def uniform(low, high):
        return low + (high - low) * torch.rand(*kinds.shape, 1, 1, generator=g, dtype=torch.float32)

    radius = uniform(0.375, 0.42) * cell
    pixel = torch.arange(cell, dtype=torch.float32) + 0.5
    x = (pixel[None, :] - cell / 2 - uniform(-0.08, 0.08) * cell) / radius      # (size, cells, 1, cell)
    y = (pixel[:, None] - cell / 2 - uniform(-0.08, 0.08) * cell) / radius      # (size, cells, cell, 1)
    circle = x ** 2 + y ** 2 <= 1
    square = torch.maximum(x.abs(), y.abs()) <= 1
    triangle = (y <= 0.9) & (2 * x.abs() - y <= 1)                              # point up
    kind = kinds[..., None, None]
    return torch.where(kind == 0, circle, torch.where(kind == 1, square, triangle))


def _boxes(inside: Tensor, grid: int, cell: int) -> Tensor:
    """The smallest box around each shape, in pixels of the whole image: (size, cells, 4)."""
    def extent(covered):                                        # (size, cells, cell) -> first covered, last + 1
        first = covered.int().argmax(-1)
        return first, cell - covered.flip(-1).int().argmax(-1)

    (x1, x2), (y1, y2) = extent(inside.any(-2)), extent(inside.any(-1))
    c = torch.arange(grid * grid)
    x0, y0 = c % grid * cell, c // grid * cell                                  # the cell's corner
    return torch.stack([x1 + x0, y1 + y0, x2 + x0, y2 + y0], dim=-1).float()


def _tile(cells: Tensor, grid: int) -> Tensor:
    """(size, grid * grid, cell, cell) -> (size, grid * cell, grid * cell)."""
    size, _, cell, _ = cells.shape
    return cells.view(size, grid, grid, cell, cell).transpose(2, 3).reshape(size, grid * cell, grid * cell)
