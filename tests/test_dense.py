"""Both dense heads, their losses and their scores against calculations of their own; then as a user runs them."""
import copy
import json
import sys

import pytest
import torch
import torchvision
from pretend_cuda import CUDA, PretendCuda
from runs import difference, one_line, run, run_ranks
from test_train import new_run
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from mpvg_minimal import ViT, fold_last_pe, resize_pe
from mpvg_minimal.data import sources
from mpvg_minimal.data.loading import make_batches, normalizer
from mpvg_minimal.dense import __main__ as command
from mpvg_minimal.dense import detection, segmentation, targets
from mpvg_minimal.dense.detection import Detector, average_precision, detection_loss
from mpvg_minimal.dense.files import IGNORED
from mpvg_minimal.dense.segmentation import SEGMENTATION, Segmenter, iou_of, segmentation_loss, token_map
from mpvg_minimal.dense.targets import dense_shapes
from mpvg_minimal.dense.tasks import TASKS
from mpvg_minimal.runtime.errors import UserError
from mpvg_minimal.tools import finished as finished_runs
from mpvg_minimal.tools.throughput_parts import Given
from mpvg_minimal.training import recipes
from mpvg_minimal.training.loop import train_step

DENSE = "mpvg_minimal.dense.__main__"
HEAD = recipes.DENSE_SHAPES["detection"].detector


def vit(image_size=(16, 24), **options):
    return ViT(**{**dict(image_size=image_size, patch_size=4, width=16, depth=2, heads=2, num_classes=5), **options})


def detector(levels, **options):
    return Detector(vit(**options), 3, channels=32, levels=levels, convs=1, padding="zeros")


def spread(model):
    """Weights far from their small beginning, so that every part shows in the outputs."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("pool", ["gap", "cls"])
def test_tokens_come_back_to_their_places(pool):
    model, images = spread(vit(pool=pool)), torch.randn(2, 3, 16, 24)
    tokens, placed = model.forward_tokens(images), token_map(model, images)
    assert placed.shape == (2, 16, 4, 6)
    first = 1 if pool == "cls" else 0
    for row, column in ((0, 0), (0, 5), (2, 3), (3, 5)):
        assert torch.equal(placed[:, :, row, column], tokens[:, first + 6 * row + column])


def test_each_pixels_scores_are_a_linear_map_of_its_token():
    model, images = spread(Segmenter(vit(), 3)), torch.randn(2, 3, 16, 24)
    scores, tokens = model(images), model.vit.forward_tokens(images)
    weight, bias = model.head.weight[:, :, 0, 0].view(3, 4, 4, 16), model.head.bias.view(3, 4, 4)
    for y, x in ((0, 0), (5, 2), (11, 23), (15, 0)):
        token = tokens[:, 6 * (y // 4) + x // 4]
        torch.testing.assert_close(scores[:, :, y, x], token @ weight[:, y % 4, x % 4].T + bias[:, y % 4, x % 4])
    large = Segmenter(vit(image_size=32, patch_size=16), 3)         # 4 x 4 scores a token, then interpolated
    assert large.head.out_channels == 3 * 16 and large(torch.randn(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_segmentation_loss_is_the_images_mean_and_leaves_out_ignored_pixels():
    scores, masks = torch.randn(3, 4, 8, 8), torch.randint(4, (3, 8, 8)).to(torch.uint8)
    masks[0, :5], masks[2] = IGNORED, IGNORED
    loss, correct = segmentation_loss(lambda _: scores, None, masks, label_smoothing=0.1)
    first = cross_entropy(scores[0, :, 5:].flatten(1).T, masks[0, 5:].flatten().long(), label_smoothing=0.1)
    second = cross_entropy(scores[1].flatten(1).T, masks[1].flatten().long(), label_smoothing=0.1)
    torch.testing.assert_close(loss, (first + second) / 3)          # nothing counts in the third, and nothing is NaN
    right = (scores.argmax(1) == masks).double()
    torch.testing.assert_close(correct.double(), right[0, 5:].mean() + right[1].mean())


def test_accumulation_is_exact_although_the_images_have_different_numbers_of_pixels(tmp_path):
    model = Segmenter(vit(image_size=8), 3)
    models = [model, copy.deepcopy(model)]
    images, masks = torch.randn(6, 3, 8, 8), torch.randint(3, (6, 8, 8)).to(torch.uint8)
    for number in range(6):
        masks[number, :number] = IGNORED
    for parts, model in zip((1, 3), models):
        train_step(new_run(tmp_path, model, task=SEGMENTATION), images, masks, lr=1e-2, accumulate=parts)
    for p, q in zip(models[0].parameters(), models[1].parameters()):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)


PLAIN = dict(normalize=lambda x: x, device=torch.device("cpu"), autocast=torch.autocast("cpu", enabled=False))


def test_mean_iou_is_that_of_the_sets_of_pixels():
    scores = [torch.randn(2, 5, 6, 6), torch.randn(1, 5, 6, 6)]
    scores = [s.index_fill(1, torch.tensor([3]), -9.0) for s in scores]     # class 3 is neither true nor found
    masks = [torch.randint(3, (len(s), 6, 6)).to(torch.uint8) for s in scores]
    masks[0][0, 0] = IGNORED
    result = segmentation.evaluate_segmenter(nn.Identity(), Given(zip(scores, masks)), **PLAIN)
    pixels = [(int(t), int(f)) for s, m in zip(scores, masks)
              for t, f in zip(m.flatten(), s.argmax(1).flatten()) if t != IGNORED]
    ious = []
    for k in (0, 1, 2, 4):
        true, found = ({n for n, pair in enumerate(pixels) if pair[side] == k} for side in (0, 1))
        ious.append(len(true & found) / len(true | found))
    assert result["mean_iou"] == pytest.approx(sum(ious) / 4)
    assert result["pixel_accuracy"] == pytest.approx(sum(t == f for t, f in pixels) / len(pixels))
    assert iou_of(torch.tensor([[3, 1], [0, 2]]))["mean_iou"] == pytest.approx((3 / 4 + 2 / 3) / 2)


def rows(*objects):
    filled = torch.full((5, 6), -1.0)
    for number, (label, box, ignored) in enumerate(objects):
        filled[number] = torch.tensor([label, *box, ignored])
    return filled


def found(*objects):
    return {"labels": torch.tensor([label for label, *_ in objects]).long(),
            "scores": torch.tensor([score for _, score, _ in objects]),
            "boxes": torch.tensor([box for *_, box in objects]).reshape(-1, 4)}


A, B, C = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [0.0, 20.0, 10.0, 30.0]


def test_average_precision_by_hand():
    """Class 0, IoU 0.5: hit, miss, hit of 3 truths, so precision is 1 up to recall 1/3, 2/3 up to 2/3, then 0.

    101 recalls 0, 0.01 ... 1: 34 are at most 1/3, another 33 at most 2/3. A box 10 wide that is shifted by 2 has
    IoU 8/12 with its truth: found at IoU 0.5 to 0.65, not at 0.7. Class 1 is found exactly; the crowd does not count.
    """
    truths = [rows((0, A, 0), (0, B, 0), (1, C, 0)), rows((0, A, 0)), rows((1, A, 1))]
    shifted = [22.0, 0.0, 32.0, 10.0]
    detections = [found((0, 0.9, A), (0, 0.7, shifted), (1, 0.5, C)), found((0, 0.8, C)), found((1, 0.9, A))]
    class_0 = {True: (34 + 33 * 2 / 3) / 101, False: 34 / 101}              # with and without the shifted box
    result = average_precision(detections, [truth[truth[:, 0] >= 0] for truth in truths])
    assert result["ap50"] == pytest.approx((class_0[True] + 1) / 2)
    assert result["ap75"] == pytest.approx((class_0[False] + 1) / 2)
    assert result["ap"] == pytest.approx((4 * (class_0[True] + 1) / 2 + 6 * (class_0[False] + 1) / 2) / 10)
    answers = Given([(torch.tensor([0, 1]), torch.stack(truths[:2])), (torch.tensor([2]), torch.stack(truths[2:]))])
    options = {**PLAIN, "normalize": lambda numbers: [detections[number] for number in numbers]}
    assert detection.evaluate_detector(nn.Identity(), answers, **options) == result


def test_average_precision_without_anything_found_or_true_is_0():
    nothing = found()
    for detections, truth in ((nothing, rows((0, A, 0))), (found((0, 0.9, A)), rows()), (nothing, rows()),
                              (found((3, 0.9, A)), rows((0, A, 0))), (found((0, 0.9, A)), rows((0, A, 1)))):
        assert average_precision([detections], [truth[truth[:, 0] >= 0]])["ap50"] == 0


@pytest.mark.parametrize("objects", [[rows(), rows()], [rows((1, [2.0, 2.0, 9.0, 9.0], 0)), rows()],
                                     [rows((1, [2.0, 2.0, 9.0, 9.0], 1)), rows()]], ids=["none", "one", "crowd"])
def test_detection_trains_with_images_without_boxes(objects):
    model = Detector(vit(image_size=16), 3, **HEAD).train()
    loss, _ = detection_loss(model, torch.randn(2, 3, 16, 16), torch.stack(objects), label_smoothing=0.0)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()) and loss > 0
    counted = [r[(r[:, 0] >= 0) & (r[:, 5] == 0)] for r in objects]         # the same by torchvision's own targets
    targets = [{"labels": r[:, 0].long(), "boxes": r[:, 1:5]} for r in counted]
    images = torch.randn(2, 3, 16, 16)
    model.fcos.transform = GeneralizedRCNNTransform(16, 16, [0.0] * 3, [1.0] * 3, size_divisible=1)
    expected = sum(model.fcos(list(images), targets).values())
    assert torch.equal(detection_loss(model, images, torch.stack(objects), label_smoothing=0.0)[0], expected)
    model.eval().fcos.score_thresh = 0.0
    for ours, theirs in zip(model(images), model.fcos(list(images)), strict=True):
        assert len(ours["boxes"]) and difference(ours, theirs) is None


def test_boxes_are_float32_on_a_card_that_trains_in_bfloat16(monkeypatch):
    """What FCOS's loss is given, on a pretended card: up to there nothing waits from the second step on."""
    seen = []
    monkeypatch.setattr(FCOS, "compute_loss", lambda _, *given: seen.append(given) or {})
    with PretendCuda(waits_allowed=True) as pretended:
        model = detector([4, 2, 1, 0.5]).train().to(CUDA, non_blocking=True)
        images, objects = torch.randn(2, 3, 16, 24, device=CUDA), torch.zeros(2, 5, 6, device=CUDA)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert model.vit.forward_tokens(images).dtype == torch.float32          # of the norm; the maps in between:
            assert model.vit.patch_embed(images).dtype == torch.bfloat16
            model(images, objects)
            pretended.waits_allowed = False                         # the anchors' size is on the device by now
            model(images, objects)
    _, (targets, outputs, anchors, counts) = seen
    places = [each["boxes"] for each in targets] + [*outputs.values(), *anchors]
    assert len(places) == 7 and {place.dtype for place in places} == {torch.float32}
    assert counts == [16 * 24, 8 * 12, 4 * 6, 2 * 3] and len(anchors[0]) == sum(counts)


def test_a_detector_keeps_its_images_size_and_its_boxes_inside():
    model = detector([4, 2, 1, 0.5]).eval()
    maps = model.fcos.backbone(torch.randn(1, 3, 16, 24)).values()
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 16, 24), (32, 8, 12), (32, 4, 6), (32, 2, 3)]
    model.fcos.score_thresh = 0.0
    boxes = model(torch.randn(1, 3, 16, 24))[0]["boxes"]
    assert len(boxes) and boxes.min() >= 0 and boxes[:, 2].max() <= 24 and boxes[:, 3].max() <= 16


def test_the_vit_of_a_detector_can_be_exchanged():
    model = detector([1], image_size=16).eval()
    names, model.vit = list(model.state_dict()), resize_pe(model.vit, 32)
    assert list(model.state_dict()) == names and model.vit.patch_embed.image_size == (32, 32)
    assert len(model(torch.randn(2, 3, 32, 32))) == 2


@pytest.mark.parametrize(("padding", "leaks"), [("circular", False), ("zeros", True)])
def test_only_padding_with_zeros_tells_a_detector_without_pe_where_things_are(padding, leaks):
    """Images moved by whole patches, around the edge: without position information all outputs just move along."""
    model = spread(Detector(vit(image_size=16, pe="none"), 3, **{**HEAD, "padding": padding}))
    images = torch.randn(1, 3, 16, 16)

    def outputs(x):
        maps = list(model.fcos.backbone(x).values())
        assert maps[0].shape[2:] == (8, 8)                          # two cells a patch
        return model.fcos.head.classification_head([maps[0]]).unflatten(1, (8, 8))

    moved, expected = outputs(images.roll((4, 8), (2, 3))), outputs(images).roll((2, 4), (1, 2))
    assert ((moved - expected).abs().max() > 0.01) == leaks
    if not leaks:
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pool", ["gap", "cls"])
@pytest.mark.parametrize("schedule", ["none", "once", "lape", "pvg", "mpvg"])
def test_folding_for_dense_use_keeps_every_token(schedule, pool):
    model, images = spread(vit(pe=schedule, pool=pool)), torch.randn(2, 3, 16, 24)
    folded = fold_last_pe(model, dense=True)
    torch.testing.assert_close(folded.forward_tokens(images), model.forward_tokens(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-5, atol=1e-5)
    assert not any(isinstance(m, nn.LayerNorm) and "pe" in name for name, m in folded.named_modules())
    if schedule == "mpvg":
        plain = fold_last_pe(model)                                 # for logits alone: its tokens lack PE
        difference = folded.forward_tokens(images) - plain.forward_tokens(images)
        torch.testing.assert_close(difference[0], difference[1])
        assert difference.std(dim=1).max() > 0.1                    # another vector for every token: no mere bias


def test_shapes_masks_and_boxes_say_the_same():
    (images, masks), (same, boxes) = (dense_shapes("test", task, size=20).tensors for task in TASKS)
    assert torch.equal(images, same)
    for mask, objects in zip(masks, boxes):
        for label, x1, y1, x2, y2, ignored in objects.int().tolist():
            inside = mask[y1:y2, x1:x2]
            assert inside.unique().tolist() in ([label + 1], [0, label + 1]) and ignored == 0
            assert label % 2 == (x1 >= 16)                          # odd: the right half of 32 pixels
            assert (inside == label + 1).any(0).all() and (inside == label + 1).any(1).all()    # no smaller box
    assert masks.max() == 6 and set(boxes[..., 0].flatten().tolist()) == {0, 1, 2, 3, 4, 5}


def small():
    targets.dense_shapes = lambda split, task: dense_shapes(split, task, size=96 if split == "train" else 40)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_run_from_nothing_and_further_epochs(task, tmp_path):
    flags = ["--task", task, "--gap", "--mpvg", "--batch-size", "32", "--out", tmp_path / "run"]
    done = run(DENSE, *flags, "--epochs", "1", fault=small)
    assert done.code == 0, done.err
    assert {"config.json", "metrics.jsonl", "checkpoint.pt", "curves.png", "predictions.png"} <= {
        path.name for path in (tmp_path / "run").iterdir()}
    assert torchvision.io.decode_image(str(tmp_path / "run" / "predictions.png")).float().std() > 20
    done = run(DENSE, *flags, "--epochs", "2", "--resume", fault=small)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    score = TASKS[task].score
    assert [line["epoch"] for line in lines] == [1, 2] and 0 <= lines[1][score] <= 1
    assert done.out.splitlines()[-1] == TASKS[task].result.format(**lines[1])
    drawn = run("mpvg_minimal.tools.plots", tmp_path / "run", "--images", "16", fault=small)
    assert drawn.code == 0 and "before and after the last norm: " in drawn.out, drawn.err
    saved, model = finished_runs.load(tmp_path / "run")
    source = sources.Source(None, dense_shapes("test", task, size=40), [], 32, (0.25,) * 3, (0.25,) * 3, {"test": None})
    batches = make_batches(source, train=False, batch_size=saved["settings"]["batch_size"], device=torch.device("cpu"))
    tested = TASKS[task].evaluate(model, batches, **{**PLAIN, "normalize": normalizer(source, torch.device("cpu"))})
    assert tested[score] == pytest.approx(lines[1][score])


def counted():
    """In place of the AP, which is 0 so early: how many images came together, and their truths' sum."""
    small()
    detection.average_precision = lambda found, truths: {"ap": len(found), "ap75": len(truths),
                                                         "ap50": sum(t.double().sum().item() for t in truths)}


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_two_processes_score_like_one(task, tmp_path):
    flags = ["--task", task, "--gap", "--mpvg", "--batch-size", "32", "--epochs", "1", "--lr", "1e-12"]
    assert run(DENSE, *flags, "--out", tmp_path / "one", fault=counted).code == 0
    assert [r.code for r in run_ranks(DENSE, *flags, "--out", tmp_path / "two", faults=(counted, counted))] == [0, 0]
    one, two = (json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("one", "two"))
    if task == "segmentation":
        assert two["mean_iou"] == pytest.approx(one["mean_iou"], abs=1e-3)
        assert two["pixel_accuracy"] == pytest.approx(one["pixel_accuracy"], abs=1e-3)
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)     # FCOS's is by each process's boxes
    else:
        assert two["ap"] == one["ap"] == two["ap75"] == 40 and two["ap50"] == one["ap50"] > 0


def test_init_takes_a_classifiers_weights_and_refuses_a_dense_runs(finished, tmp_path):
    flags, first = ["--epochs", "1", "--batch-size", "32"], finished / "shapes" / "checkpoint.pt"
    done = run(DENSE, "--task", "segmentation", "--init", first, *flags, "--lr", "1e-12", "--out", tmp_path / "second",
               fault=small)
    assert done.code == 0, done.err
    before, (saved, model) = torch.load(first, weights_only=True), finished_runs.load(tmp_path / "second")
    assert (saved["settings"]["pe"], saved["settings"]["pool"]) == ("mpvg", "gap")
    for name, weights in model.vit.state_dict().items():
        torch.testing.assert_close(weights, before["model"][name], rtol=1e-4, atol=1e-6)
    refused = run(DENSE, "--task", "detection", "--init", tmp_path / "second" / "checkpoint.pt", *flags, "--out",
                  tmp_path / "third", fault=small)
    one_line(refused, "segmentation run")


@pytest.mark.parametrize(("flags", "needle"), [
    (["--task", "detection", "--image-size", "64"], "drawn at 32"), ([], "--task"),
    (["--task", "detection", "--loader", "device"], "--loader device"),
    (["--task", "detection", "--dataset", "coco", "--image-size", "30", "--model", "vit_nano"], "does not divide"),
    (["--task", "detection", "--dataset", "coco", "--image-size", "32", "--model", "vit_nano"], "coco")])
def test_flags_that_make_no_sense_are_one_line(flags, needle, tmp_path, monkeypatch):
    flags = [*flags, "--out", str(tmp_path / "run"), "--data-dir", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", ["dense", *flags])
    with pytest.raises(UserError, match=needle) as caught:
        command.main()
    assert "\n" not in str(caught.value)
