"""The batched augmentation against torchvision's, one image at a time."""
import pytest
import torch
from pretend_cuda import CUDA, PretendCuda
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Subset
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from mpvg_minimal.data import device_augment, device_batches, sources
from mpvg_minimal.data.batches import Batches
from mpvg_minimal.data.device_augment import COLUMNS, RECTANGLE, operations
from mpvg_minimal.data.device_batches import DeviceBatches

CPU = torch.device("cpu")
AUGMENT = dict(scale=[0.8, 1.0], rand_augment=9, erasing=0.25)


@pytest.fixture(scope="module")
def source():
    return sources.open_shapes()


def smooth(count, size=32):
    """Images with structure at several scales."""
    coarse = torch.rand(count, 3, 8, 8) * 255
    return F.resize(coarse, [size, size], antialias=True).round().clamp(0, 255).to(torch.uint8)


def test_crop_and_resize_is_torchvisions_where_the_rectangle_is_given():
    images = smooth(40)
    h, w = torch.randint(5, 33, (40,)), torch.randint(5, 33, (40,))
    top, left = ((torch.rand(40) * (33 - side)).long() for side in (h, w))
    ours = device_augment.resized_crop(images, top, left, h, w)
    for number, image in enumerate(images):
        box = [int(value[number]) for value in (top, left, h, w)]
        theirs = F.resized_crop(image, *box, [32, 32], interpolation=InterpolationMode.BICUBIC, antialias=True)
        assert (ours[number].int() - theirs.int()).abs().max() <= 1             # its integer arithmetic rounds twice
        pil = F.pil_to_tensor(F.resized_crop(F.to_pil_image(image), *box, [32, 32],
                                             interpolation=InterpolationMode.BICUBIC))
        assert (ours[number].int() - pil.int()).abs().max() <= 1
    zero, whole = torch.zeros(40).long(), torch.full((40,), 32)
    assert torch.equal(device_augment.resized_crop(images, zero, zero, whole, whole), images)


def test_resizing_is_exact_so_no_order_of_its_sums_can_change_a_pixel():
    """In float64, and with the sums in another order: the same pixels as in float32."""
    images, left = smooth(500), torch.randint(0, 7, (500,))
    crop = images, torch.zeros(500).long(), left, torch.full((500,), 29), torch.full((500,), 26)
    ours = device_augment.resized_crop(*crop)
    rows, columns = (device_augment.resize_matrix(start, length, 32) for start, length in zip(crop[1:3], crop[3:]))
    rows, columns = ((2 ** 15 * weight).round().double() / 2 ** 15 for weight in (rows, columns))
    x = (rows.flip(2)[:, None] @ images.flip(2).double()).round().clamp(0, 255)
    x = (x.flip(3) @ columns.flip(2)[:, None].transpose(2, 3)).round().clamp(0, 255)
    assert torch.equal(ours.double(), x)


def test_operations_are_torchvisions_for_the_same_draw(monkeypatch):
    """Each of the 14, with both signs, against RandAugment's own code when its draws are forced."""
    images, ops, fill = smooth(4), operations(9, 32, [125, 123, 114]), [125, 123, 114]
    space = list(v2.RandAugment._AUGMENTATION_SPACE)
    assert len(ops) == len(space) == 14
    theirs = v2.RandAugment(num_ops=1, magnitude=27, num_magnitude_bins=31, fill=fill)
    for number, name in enumerate(space):
        for sign in (1, -1):
            item = (name, v2.RandAugment._AUGMENTATION_SPACE[name])
            monkeypatch.setattr(theirs, "_get_random_item", lambda _, item=item: item)
            monkeypatch.setattr(torch, "rand", lambda *_, sign=sign: torch.tensor(0.9 if sign == 1 else 0.1))
            expected = torch.stack([theirs(image) for image in images])
            monkeypatch.undo()
            assert torch.equal(ops[number][0 if sign == 1 else -1](images), expected), (name, sign)


def test_each_image_gets_the_operation_that_it_drew():
    images = smooth(64)
    ops = [[lambda x: x // 2 + 11, lambda x: x // 2 + 10], [lambda x: x // 2 + 40],     # the second knows no sign
           [lambda x: x // 2 + 71, lambda x: x // 2 + 70]]
    u = torch.rand(64, 3)
    result = device_augment.one_operation(images, u, ops)
    for image, draw, out in zip(images, u, result, strict=True):
        choice = int(draw[1] * 3)
        expected = image if draw[0] >= 0.5 else image // 2 + (10, 40, 70)[choice] + (draw[2] < 0.5 and choice != 1)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("whole", [True, False], ids=["crop", "erase"])
def test_rectangles_are_distributed_as_torchvisions(whole):
    """Mean and deviation of area, aspect and place over many draws, in standard errors."""
    count, image = 4000, torch.zeros(3, 32, 32, dtype=torch.uint8)
    scale, ratio = ([0.3, 1.0], (3 / 4, 4 / 3)) if whole else ([0.02, 0.33], (0.3, 3.3))
    *rectangle, fitted = device_augment.rectangles(torch.rand(count, RECTANGLE), scale=scale, ratio=ratio, height=32,
                                                   width=32, whole=whole)
    ours = torch.stack(rectangle, 1)[fitted].double()
    transform = v2.RandomResizedCrop(32, scale=scale) if whole else v2.RandomErasing(1.0)
    keys = ("top", "left", "height", "width") if whole else ("i", "j", "h", "w")
    theirs = torch.tensor([[transform.make_params([image])[key] for key in keys] for _ in range(count)]).double()
    for values in (lambda r: r[:, 2] * r[:, 3], lambda r: (r[:, 2] / r[:, 3]).log(), lambda r: r[:, 0],
                   lambda r: r[:, 1], lambda r: (r[:, 2] - r[:, 2].mean()) ** 2):
        a, b = values(ours), values(theirs)
        error = (a.var() / len(a) + b.var() / len(b)).sqrt()
        assert abs(a.mean() - b.mean()) < 4 * error


def test_where_no_rectangle_fits_the_whole_image_is_taken():
    u = torch.rand(200, RECTANGLE)
    *rectangle, fitted = device_augment.rectangles(u, scale=[1.2, 1.3], ratio=(0.9, 1.1), height=32, width=32,
                                                   whole=True)
    assert not fitted.any() and (torch.stack(rectangle, 1) == torch.tensor([0, 0, 32, 32])).all()


def test_erasing_paints_one_rectangle_in_its_color():
    images = smooth(300)
    images[images == 7] = 8
    out = device_augment.erase(images, torch.rand(300, RECTANGLE + 1), probability=0.25, fill=[7, 7, 7])
    erased = (out == 7).all(1)                                                          # (B, H, W)
    hit = erased.flatten(1).any(1)
    assert 0.17 < hit.float().mean() < 0.33
    assert torch.equal(out[~hit], images[~hit])
    for mask in erased[hit]:
        rows, columns = mask.any(1).sum(), mask.any(0).sum()
        assert mask.sum() == rows * columns                                             # a rectangle


def test_both_paths_give_the_same_distribution(source):
    """Pixel statistics of many augmentations of a few images, one path against the other."""
    images, count = smooth(6), 600
    one = sources.augmentation(source, **AUGMENT)
    theirs = torch.stack([torch.stack([one(F.to_pil_image(image)) for _ in range(count)]) for image in images]).float()
    copies = [image.expand(count, -1, -1, -1).clone() for image in images]
    ours = [device_augment.augmented(many, torch.rand(count, COLUMNS), source, **AUGMENT) for many in copies]
    ours = torch.stack(ours).float()                                                    # (6, count, 3, H, W)
    for values in (lambda x: x.mean((2, 3, 4)), lambda x: x.std((3, 4)).mean(2),
                   lambda x: x[..., :8, :8].mean((2, 3, 4)), lambda x: x.diff().abs().mean((2, 3, 4))):
        a, b = values(ours), values(theirs)                                             # (6, count)
        error = (a.var(1) / count + b.var(1) / count).sqrt()
        assert ((a.mean(1) - b.mean(1)).abs() < 4.5 * error).all()


def test_draws_depend_on_seed_epoch_and_index_alone(source):
    """Not on the step, the batch size or the number of processes."""
    dataset = Subset(source.train, range(96))

    def images(epoch=0, start=0, batch_size=32, seed=0, **share):
        batches = DeviceBatches(dataset, source, AUGMENT, CPU, batch_size=batch_size, train=True, seed=seed, **share)
        return [image for batch, _ in batches.epoch(epoch, start) for image in batch]

    reference = images()
    assert all(map(torch.equal, reference[64:], images(start=2)))
    assert all(map(torch.equal, reference, images(batch_size=48)))
    shares = [images(rank=rank, world=2) for rank in (0, 1)]
    assert all(torch.equal(reference[n], shares[n % 2][n // 2]) for n in range(96))
    assert not all(map(torch.equal, reference, images(seed=1)))
    assert not all(map(torch.equal, reference, images(epoch=1)))


@pytest.mark.parametrize("train", [True, False])
def test_without_augmentation_both_loaders_give_the_same_batches(source, train):
    dataset, options = Subset(source.test, range(70)), dict(batch_size=32, train=train, seed=4)
    plain = list(Batches(dataset, None, **options).epoch(3))
    device = list(DeviceBatches(dataset, source, None, CPU, **options).epoch(3))
    assert len(plain) == len(device) == (2 if train else 3)
    for (a, b), (c, d) in zip(plain, device, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


def test_what_becomes_of_an_image_does_not_depend_on_those_augmented_with_it(source):
    images, u = smooth(200), torch.rand(200, COLUMNS)
    together = device_augment.augmented(images, u, source, **AUGMENT)
    alone = [device_augment.augmented(images[n:n + 1], u[n:n + 1], source, **AUGMENT)[0] for n in range(200)]
    assert all(map(torch.equal, together, alone))


def test_augmentation_is_computed_in_full_float32_also_in_a_run_that_allows_tf32(source):
    class Precision(TorchDispatchMode):
        seen = []

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if any(word in str(op) for word in ("mm", "convolution", "conv2d")):
                self.seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return op(*args, **kwargs or {})

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with Precision() as precision:
            device_augment.augmented(smooth(200), torch.rand(200, COLUMNS), source, **AUGMENT)
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(precision.seen) > 10 and set(precision.seen) == {("highest", False)}


def count_chunks(monkeypatch, source, images, *, device=CPU, **options):
    sizes, original = [], device_augment.augmented
    monkeypatch.setattr(device_batches, "augmented", lambda x, *rest, **more: (
        sizes.append(len(x)), original(x, *rest, **more))[1])
    batches = DeviceBatches(Subset(source.train, range(images)), source, AUGMENT, device, train=True, **options)
    for _ in batches.epoch():
        pass
    return sizes


def test_a_chunk_counts_the_images_of_this_process(source, monkeypatch):
    monkeypatch.setattr(device_batches, "CHUNK", 64)
    assert count_chunks(monkeypatch, source, 256, batch_size=32, rank=1, world=2) == [64, 64]
    assert count_chunks(monkeypatch, source, 256, batch_size=96) == [96, 96]        # never less than a step


def test_on_a_card_with_room_an_epoch_is_one_chunk(source, monkeypatch):
    monkeypatch.setattr(device_batches, "CHUNK", 1024)
    with PretendCuda(waits_allowed=True) as pretended:
        assert count_chunks(monkeypatch, source, 2250, batch_size=100, device=CUDA) == [2200]
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 ** 20, 2 ** 36))
        assert count_chunks(monkeypatch, source, 2250, batch_size=100, device=CUDA) == [1000, 1000, 200]
    assert pretended.copies["waiting"] < 300                        # torchvision's constants, about 65 a chunk
