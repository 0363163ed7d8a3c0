from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpvg_minimal import vit_nano
from mpvg_minimal.data.loading import make_batches, normalizer
from mpvg_minimal.data.shapes import KINDS, Shapes
from mpvg_minimal.data.sources import open_shapes
from mpvg_minimal.training import recipes
from mpvg_minimal.training.loop import fit
from mpvg_minimal.training.run import start_run

PARTS = ("images", "labels", "kinds", "instances", "boxes")


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes("test")


def cells(of: torch.Tensor, grid: int = 4) -> torch.Tensor:
    """(size, S, S) -> (size, grid * grid, S / grid, S / grid)."""
    cell = of.shape[-1] // grid
    return of.unfold(1, cell, cell).unfold(2, cell, cell).flatten(1, 2)


def test_the_same_seed_gives_the_same_images_and_the_global_generator_is_left_alone():
    first = Shapes("train", size=20, seed=3)
    before = torch.manual_seed(2).get_state()
    second, other = Shapes("train", size=20, seed=3), Shapes("train", size=20, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    for part in PARTS:
        assert torch.equal(getattr(first, part), getattr(second, part))
        assert not torch.equal(getattr(first, part), getattr(other, part))


def test_train_and_test_are_other_images(shapes):
    train = Shapes("train")
    assert (len(train), len(shapes)) == (10_000, 2_000)
    rows = torch.cat([train.images, shapes.images]).flatten(1)
    assert len({row.tobytes() for row in rows.numpy()}) == 12_000
    few = Shapes("train", size=20), Shapes("test", size=20)
    assert not any(torch.equal(getattr(few[0], part), getattr(few[1], part)) for part in PARTS)
    with pytest.raises(ValueError, match="split is 'val', expected \"train\" or \"test\""):
        Shapes("val")


def test_the_label_is_the_cell_of_the_odd_kind(shapes):
    for kinds, label in zip(shapes.kinds.tolist(), shapes.labels.tolist()):
        assert [kinds.count(kind) for kind in kinds] == [1 if cell == label else 15 for cell in range(16)]


def test_labels_and_kinds_are_uniform(shapes):
    """Chi-square, exceeded once in a thousand: for 15 degrees of freedom 37.7, for the 5 of ordered pairs 20.5."""
    def chi_square(values, bins):
        expected = len(values) / bins
        return ((values.bincount(minlength=bins) - expected) ** 2 / expected).sum().item()

    odd = shapes.kinds[torch.arange(2000), shapes.labels]
    common = shapes.kinds[torch.arange(2000), (shapes.labels + 1) % 16]
    assert chi_square(shapes.labels, 16) < 37.7
    assert chi_square(common * 2 + (odd - common) % 3 - 1, 6) < 20.5


def test_an_item_is_an_image_and_its_label(shapes):
    image, label = shapes[7]
    assert image.dtype == torch.uint8 and image.shape == (3, 32, 32) and torch.equal(image, shapes.images[7])
    assert type(label) is int and label == shapes.labels[7]
    assert shapes.classes[label] == f"row {label // 4 + 1}, column {label % 4 + 1}" and len(shapes.classes) == 16


@pytest.mark.parametrize("grid, cell", [(4, 8), (2, 12), (3, 10)])
def test_boxes_pixel_by_pixel(grid, cell):
    shapes = Shapes("test", size=6, grid=grid, cell=cell)
    for instances, boxes in zip(shapes.instances.tolist(), shapes.boxes.tolist()):
        for number in range(grid * grid):
            covered = [(x, y) for y in range(grid * cell) for x in range(grid * cell) if instances[y][x] == number + 1]
            columns, rows = zip(*covered)
            assert boxes[number] == [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
            assert {(x // cell, y // cell) for x, y in covered} == {(number % grid, number // grid)}


def test_every_cell_holds_its_shape_alone(shapes):
    inside = cells(shapes.instances)                                            # (size, 16, 8, 8)
    number = torch.arange(1, 17, dtype=torch.uint8)[:, None, None]
    assert ((inside == 0) | (inside == number)).all()
    assert inside.ne(0).sum((2, 3)).min() >= 12


def test_a_kind_can_be_told_from_the_pixels(shapes):
    """Else no model could always find the odd one: a small circle may cover exactly the pixels of a square."""
    inside = cells(shapes.instances).flatten(0, 1).ne(0)                        # (size * 16, 8, 8)
    x1, y1, x2, y2 = shapes.boxes.flatten(0, 1).long().unbind(1)
    widths, each = inside.sum(2), torch.arange(len(x1))
    first, last = widths[each, y1 % 8], widths[each, (y2 - 1) % 8]              # of the top row and the bottom row
    square = inside.sum((1, 2)) == (x2 - x1) * (y2 - y1)                        # fills its box
    triangle = (last == widths.amax(1)) & (first <= last / 2)
    assert torch.equal(torch.where(square, 1, torch.where(triangle, 2, 0)), shapes.kinds.flatten())
    assert KINDS == ("circle", "square", "triangle")


def test_a_shape_has_one_bright_color_on_dark_noise(shapes):
    bright = shapes.images.ge(96)
    assert (bright == shapes.instances.ne(0)[:, None]).all()                    # all channels, exactly the shapes
    assert shapes.images[~bright].max() == 63 and shapes.images[~bright].min() == 0
    inside = cells(shapes.instances).ne(0)
    for channel in shapes.images.unbind(1):
        color = cells(channel)
        assert torch.equal(color.where(inside, 0).amax((2, 3)), color.where(inside, 255).amin((2, 3)))
    assert shapes.images.max() == 255 and shapes.images[bright].min() == 96


def test_color_says_nothing_about_the_odd_one(shapes):
    color = torch.stack([cells(channel).amax((2, 3)) for channel in shapes.images.unbind(1)]).double()
    odd = color[:, torch.arange(2000), shapes.labels].mean()                    # of 6,000 numbers, 96 ... 255
    assert odd.item() == pytest.approx((96 + 255) / 2, abs=4 * 160 / 12 ** 0.5 / 6000 ** 0.5)


# Learning: chance is 1 / 16

def learn(pe: str, out: Path, *, images: int, epochs: int) -> float:
    """Test accuracy in %."""
    source, cpu = open_shapes(), torch.device("cpu")
    batches = [make_batches(source, train=train, batch_size=128, limit=images if train else None, device=cpu)
               for train in (True, False)]
    run = start_run(vit_nano(pool="gap", pe=pe), replace(recipes.SHAPES, epochs=epochs), out=out, device=cpu)
    return fit(run, *batches, normalize=normalizer(source, cpu))[-1]["top1"]


def test_without_pe_a_model_stays_at_chance(tmp_path):
    assert learn("none", tmp_path, images=2000, epochs=2) == pytest.approx(100 / 16, abs=2)


@pytest.mark.slow
def test_mpvg_with_gap_learns_where_the_odd_one_is(tmp_path):
    assert learn("mpvg", tmp_path, images=10_000, epochs=3) > 95
