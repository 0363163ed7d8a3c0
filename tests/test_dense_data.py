"""VOC, COCO and ADE20K in their real layouts, small, with what is broken in them by turns."""
import itertools
import json
import os
import signal
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from runs import difference, one_line, run
from test_shapes import PARTS

from mpvg_minimal.data.batches import Batches
from mpvg_minimal.data.shapes import Shapes
from mpvg_minimal.dense import files, targets
from mpvg_minimal.dense.files import IGNORED
from mpvg_minimal.dense.targets import MOST, dense_shapes, open_dense
from mpvg_minimal.runtime.errors import UserError

SIZE, VOC = (40, 52), "VOCdevkit/VOC2012"                            # height, width
OBJECT = """<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>
<ymax>{}</ymax></bndbox></object>"""


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def mask(path, values, size=SIZE, mode="P"):
    """A mask whose left half has the first value and its right half the second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full(size, values[0], np.uint8)
    array[:, size[1] // 2:] = values[1]
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(path)


def voc(root, train=4, val=2):
    base = root / VOC
    for split, count in (("train", train), ("val", val)):
        names = [f"{split}_{number}" for number in range(count)]
        for task in ("Segmentation", "Main"):
            (base / "ImageSets" / task).mkdir(parents=True, exist_ok=True)
            (base / "ImageSets" / task / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            picture(base / "JPEGImages" / f"{name}.jpg")
            mask(base / "SegmentationClass" / f"{name}.png", (15, IGNORED))
            annotate(root, name, ("person", 0, 5, 4, 25, 34), ("dog", 1, 30, 10, 45, 30))


def annotate(root, name, *objects):
    body = "".join(OBJECT.format(*values) for values in objects)
    (root / VOC / "Annotations").mkdir(exist_ok=True)
    (root / VOC / "Annotations" / f"{name}.xml").write_text(f"<annotation>{body}</annotation>")


def coco(root, images=4, change=lambda content: None):
    """Categories 3, 7 and 90; a car, a train and a crowd in every image but the last, which has none."""
    for split in ("train2017", "val2017"):
        annotations = []
        for number in range(1, images + 1):
            picture(root / split / f"{number:012d}.jpg")
            objects = ((3, (4, 5, 20, 30), 0), (7, (10, 10, 8, 8), 0), (90, (30, 0, 9, 9), 1))
            for category, (x, y, w, h), crowd in objects if number < images else ():
                polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                runs = {"size": list(SIZE), "counts": [SIZE[0] * x] + [h, SIZE[0] - h] * w}
                runs["counts"].append(SIZE[0] * SIZE[1] - sum(runs["counts"]))
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": category,
                                    "bbox": [x, y, w, h], "area": w * h, "iscrowd": crowd,
                                    "segmentation": runs if crowd else polygon})
        content = {"images": [{"id": n, "file_name": f"{n:012d}.jpg", "height": SIZE[0], "width": SIZE[1]}
                              for n in range(1, images + 1)], "annotations": annotations,
                   "categories": [{"id": 90, "name": "brush"}, {"id": 3, "name": "car"}, {"id": 7, "name": "train"}]}
        change(content)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def ade20k(root, count=4):
    for split in ("training", "validation"):
        for number in range(count):
            picture(root / "images" / split / f"ADE_{number}.jpg")
            mask(root / "annotations" / split / f"ADE_{number}.png", (0, 150), mode="L")


TREES = {"voc": voc, "coco": coco, "ade20k": ade20k}


def first(source, split="test", index=0):
    return source.transforms[split](*getattr(source, split)[index])


def test_voc_masks_and_boxes(tmp_path):
    voc(tmp_path)
    source = open_dense("segmentation", "voc", str(tmp_path), 32)
    image, target = first(source)
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8 and len(source.classes) == 21
    assert (target[:, :15] == 15).all() and (target[:, 17:] == IGNORED).all() and source.classes[15] == "person"
    source = open_dense("detection", "voc", str(tmp_path), 32)
    _, target = first(source)
    assert target.shape == (MOST, 6) and (target[2:] == -1).all() and len(source.classes) == 20
    scale = torch.tensor([32 / 52, 32 / 40] * 2)
    for row, (name, box, difficult) in zip(target, (("person", (5, 4, 25, 34), 0), ("dog", (30, 10, 45, 30), 1))):
        assert source.classes[int(row[0])] == name and row[5] == difficult
        torch.testing.assert_close(row[1:5], torch.tensor(box).float() * scale)


def test_coco_masks_and_boxes(tmp_path):
    coco(tmp_path)
    source = open_dense("detection", "coco", str(tmp_path), 52)
    assert source.classes == ["car", "train", "brush"]
    _, target = first(source)
    scale = torch.tensor([1, 52 / 40] * 2)
    boxes = torch.tensor([[4, 5, 24, 35], [30, 0, 39, 9], [10, 10, 18, 18]])
    torch.testing.assert_close(target[:3, 1:5], boxes * scale)
    assert target[:3, 0].tolist() == [0, 2, 1] and target[:3, 5].tolist() == [0, 1, 0]      # the largest first
    assert (first(source, index=3)[1] == -1).all()                                          # no annotation at all
    source = open_dense("segmentation", "coco", str(tmp_path), 52)
    target = source.test[0][1]
    assert source.classes == ["background", "car", "train", "brush"]
    assert target[0, 0] == 0 and target[7, 6] == 1 and target[14, 14] == 2 and target[4, 34] == IGNORED
    assert (target == 2).sum() == pytest.approx(64, abs=20) and (source.test[3][1] == 0).all()


def test_ade20k_counts_from_0_and_ignores_other_also_in_capitals_and_in_subfolders(tmp_path):
    ade20k(tmp_path)
    folder = tmp_path / "images" / "training"
    (folder / "ADE_1.jpg").rename(folder / "ADE_1.JPG")
    for kind, name in (("images", "ADE_2.jpg"), ("annotations", "ADE_2.png")):
        (tmp_path / kind / "training" / "below").mkdir()
        (tmp_path / kind / "training" / name).rename(tmp_path / kind / "training" / "below" / name)
    picture(folder / "@eaDir" / "ADE_7.jpg")
    picture(folder / ".ipynb_checkpoints" / "ADE_8.jpg")
    source = open_dense("segmentation", "ade20k", str(tmp_path), 32)
    names = [str(image.relative_to(folder)) for image, _ in source.train.items]
    assert names == ["ADE_0.jpg", "ADE_1.JPG", "ADE_3.jpg", "below/ADE_2.jpg"] and len(source.classes) == 150
    assert all((mask[:, :26] == IGNORED).all() and (mask[:, 26:] == 149).all() for _, mask in source.train)


def spoil_json(root, content):
    (root / "annotations" / "instances_train2017.json").write_bytes(content.encode(errors="surrogatepass"))


def cut_image(root):
    path = root / "train2017" / f"{1:012d}.jpg"
    path.write_bytes(path.read_bytes()[:300])


def unlisted(category):
    def change(content):
        content["annotations"][0]["category_id"] = category
    return lambda root: coco(root, change=change)


BROKEN = [                                          # task, data set, what is done to its folder, what the line names
    ("segmentation", "voc", lambda root: mask(root / VOC / "SegmentationClass" / "train_1.png", (1, 2), size=(40, 50)),
     r"/train_1.jpg is of size \(40, 52\), but its mask of \(40, 50\)"),
    ("segmentation", "voc", lambda root: mask(root / VOC / "SegmentationClass" / "train_1.png", (1, 77)),
     "/train_1.jpg .*class 77, expected 0 to 20"),
    ("segmentation", "ade20k", lambda root: picture(root / "annotations" / "training" / "ADE_1.png"),
     "/ADE_1.jpg .*mode RGB"),
    ("segmentation", "ade20k", lambda root: (root / "annotations" / "training" / "ADE_2.png").unlink(),
     "/ADE_2.jpg .*No such file.*/ADE_2.png'.: fetch it again"),
    ("segmentation", "ade20k", lambda root: (root / "images" / "training" / "ADE_1.gif").touch(),
     "/ADE_1.gif does not have the name of an image"),
    ("detection", "voc", lambda root: (root / VOC / "JPEGImages" / "train_2.jpg").unlink(),
     "/train_2.jpg .*No such file.*: fetch it again"),
    ("detection", "voc", lambda root: (root / VOC / "Annotations" / "train_3.xml").write_text("<annotation><object>"),
     "/train_3.jpg or its annotation cannot be read .ParseError"),
    ("detection", "voc", lambda root: annotate(root, "train_3", ("unicorn", 0, 1, 1, 9, 9)), "/train_3.jpg .*unicorn"),
    ("detection", "coco", lambda root: (root / "train2017" / f"{2:012d}.jpg").unlink(),
     "/0+2.jpg .*No such file.*: fetch it again"),
    ("segmentation", "coco", lambda root: picture(root / "train2017" / f"{1:012d}.jpg", size=(30, 30)),
     r"/0+1.jpg is of size \(30, 30\), but its mask of \(40, 52\)"),
    *[(task, "coco", unlisted(category), f"/0+1.jpg .*category {category}, which the file does not list")
      for task in ("detection", "segmentation") for category in (4, 100)],
    *[("detection", "coco", lambda root, content=content: spoil_json(root, content),
       "^coco is not complete in .*: fetch http") for content in (
          '{"images": [', "[]", "3", "null", '"images"', "{}", '{"images": 3}', '{"images": [], "annotations": 7}',
          '{"images": [7], "annotations": [], "categories": []}', "\ud800")]]


@pytest.mark.parametrize(("task", "dataset", "spoil", "why"), BROKEN)
def test_what_is_broken_is_named_in_one_line(tmp_path, task, dataset, spoil, why):
    TREES[dataset](tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=why) as caught:
        list(open_dense(task, dataset, str(tmp_path), 32).train)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("task, dataset, place", [
    ("segmentation", "voc", f"{VOC}/JPEGImages/train_0.jpg"),
    ("segmentation", "voc", f"{VOC}/SegmentationClass/train_0.png"),
    ("detection", "voc", f"{VOC}/JPEGImages/train_0.jpg"), ("detection", "voc", f"{VOC}/Annotations/train_0.xml"),
    ("segmentation", "coco", f"train2017/{1:012d}.jpg"), ("detection", "coco", f"train2017/{1:012d}.jpg"),
    ("segmentation", "ade20k", "images/training/ADE_0.jpg"),
    ("segmentation", "ade20k", "annotations/training/ADE_0.png")])
@pytest.mark.parametrize("make, why", [
    (lambda path: Image.fromarray(np.full(SIZE, 40_000, np.uint16)).save(path, "PNG"),
     "more than 8 bits|mode I|ParseError"), (os.mkfifo, "not a regular file")])
def test_pipes_and_16_bits_are_refused_by_name(tmp_path, task, dataset, place, make, why):
    """To read a pipe waits for ever, so the alarm ends the test if it is opened."""
    TREES[dataset](tmp_path)
    source = open_dense(task, dataset, str(tmp_path), 32)
    (tmp_path / place).unlink()
    make(tmp_path / place)
    signal.alarm(20)
    try:
        with pytest.raises(UserError, match=f"^{tmp_path}.*_?0{{0,11}}[01].jpg .*({why})"):
            source.train[0]
    finally:
        signal.alarm(0)


@pytest.mark.parametrize(("dataset", "archive"), [("voc", "VOCtrainval_11-May-2012.tar"), ("coco", "train2017.zip"),
                                                  ("ade20k", "ADEChallengeData2016.zip")])
def test_what_is_missing_is_named_with_where_to_get_it_and_where_to_put_it(dataset, archive, tmp_path):
    place = tmp_path / "none"
    with pytest.raises(UserError, match=f"^{dataset} is not complete in {place} .*: fetch http.*{archive}.*{place}"):
        open_dense("segmentation", dataset, str(place), 32)
    assert not place.exists()                                                   # nothing was fetched


def test_mistakes_of_a_user_are_one_line(tmp_path):
    ade20k(tmp_path)
    with pytest.raises(UserError, match="--task segmentation"):
        open_dense("detection", "ade20k", str(tmp_path), 32)
    for split in ("training", "validation"):
        (tmp_path / "empty" / "images" / split).mkdir(parents=True)
    with pytest.raises(UserError, match="empty holds 0 training and 0 test images: fetch"):
        open_dense("segmentation", "ade20k", str(tmp_path / "empty"), 32)
    for dataset, name in itertools.product(TREES, ("", "a\0b")):
        with pytest.raises(UserError, match="--data-dir '.*' is no name of a folder"):
            open_dense("segmentation", dataset, name, 32)


def test_boxes_outside_are_left_out_or_clipped_with_a_warning_that_names_the_file(tmp_path):
    voc(tmp_path)
    annotate(tmp_path, "val_0", ("person", 0, 60, 5, 70, 20), ("dog", 0, 30, 10, 90, 30), ("cat", 0, 8, 8, 8, 20))
    annotate(tmp_path, "val_1", ("dog", 0, 30, 10, 90, 30))
    source = open_dense("detection", "voc", str(tmp_path), 52)
    with pytest.warns(UserWarning, match="val_0.jpg: 2 of 3 boxes"):
        _, target = first(source)
    assert target[0, 1] == 30 and target[0, 3] == 52 and (target[1:] == -1).all()
    with pytest.warns(UserWarning, match=r"val_1.jpg: a box reaches out.*\(40, 52\)"):
        first(source, index=1)


def train(task, dataset, tmp_path, *flags):
    return run("mpvg_minimal.dense.__main__", "--task", task, "--dataset", dataset, "--data-dir", tmp_path / "data",
               "--out", tmp_path / "run", "--gap", "--mpvg", "--model", "vit_nano", "--image-size", "32",
               "--batch-size", "4", "--epochs", "1", *flags)


@pytest.mark.parametrize(("task", "dataset"), [("detection", "voc"), ("segmentation", "coco"),
                                               ("segmentation", "ade20k")])
def test_every_layout_trains(task, dataset, tmp_path):
    """Among the images: one without an object, and for VOC one that is annotated with nothing at all."""
    TREES[dataset](tmp_path / "data")
    if dataset == "voc":
        annotate(tmp_path / "data", "train_0")
        annotate(tmp_path / "data", "val_0")
    done = train(task, dataset, tmp_path, "--workers", "0")
    assert done.code == 0, done.err
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert np.isfinite(line["train_loss"]) and 0 <= line["mean_iou" if task == "segmentation" else "ap50"] <= 1
    assert os.path.getsize(tmp_path / "run" / "predictions.png") > 5000


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_ends_at_what_is_broken_with_one_line(workers, tmp_path):
    coco(tmp_path / "data")
    cut_image(tmp_path / "data")
    done = train("detection", "coco", tmp_path, "--workers", workers)
    one_line(done, f"error: {tmp_path}/data/train2017/{1:012d}.jpg cannot be read")


def test_what_a_batch_holds_is_a_function_of_seed_epoch_and_index(tmp_path):
    coco(tmp_path, images=8)
    source = open_dense("detection", "coco", str(tmp_path), 32, scale=[0.3, 1.0])

    def batches(epoch, start=0, seed=0, workers=0):
        made = Batches(source.train, source.transforms["train"], batch_size=2, train=True, seed=seed,
                       workers=workers)
        torch.rand(5)                                       # what was drawn before must not matter
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(made.epoch(epoch, start))

    whole = batches(1)
    assert len(whole) == 4 and difference(batches(1, start=2, workers=1), whole[2:]) is None
    for other in (batches(2), batches(1, seed=1)):
        assert not all(torch.equal(a[1], b[1]) for a, b in zip(whole, other))


def test_boxes_follow_the_crop_and_the_flip():
    """A white rectangle on black: after any crop and flip its box is where the white pixels are."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[20:50, 10:40] = 255
    target = {"boxes": torch.tensor([[10.0, 20.0, 40.0, 50.0]]), "labels": torch.tensor([2]),
              "ignored": torch.tensor([0.0])}
    target = files.valid_boxes(target, (60, 80), "white.jpg")
    transforms = targets.transforms_of(64, [0.5, 1.0])
    seen = 0
    for seed in range(12):
        torch.manual_seed(seed)
        pixels, rows = transforms["train"](Image.fromarray(image), target)
        white = (pixels[0] > 127).nonzero()
        if len(white):
            (y1, x1), (y2, x2) = white.min(0).values.tolist(), (white.max(0).values + 1).tolist()
            torch.testing.assert_close(rows[0], torch.tensor([2.0, x1, y1, x2, y2, 0.0]), rtol=0, atol=1.5)
            seen += 1
    assert seen > 8


def test_images_and_targets_do_not_depend_on_torchs_default_dtype(tmp_path):
    def all_targets():
        drawn = Shapes("test", size=200)
        shapes = [getattr(drawn, part) for part in PARTS]
        shapes += [dense_shapes("test", task, size=50).tensors[1] for task in ("segmentation", "detection")]
        return shapes + [first(open_dense("detection", name, str(tmp_path), 32))[1] for name in ("voc", "coco")]

    voc(tmp_path)
    coco(tmp_path)
    expected = all_targets()
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(all_targets(), expected)                     # also compares the dtypes
        assert all(map(torch.equal, all_targets()[:-2], expected[:-2]))         # shapes: bit for bit
    finally:
        torch.set_default_dtype(torch.float32)
