"""The loop's parts against calculations of their own."""
import copy
import math
import signal
import time
from dataclasses import replace

import pytest
import torch
from runs import difference
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mpvg_minimal import ViT
from mpvg_minimal.runtime.signals import Interrupt
from mpvg_minimal.tools.throughput_parts import Given
from mpvg_minimal.training.loop import fit, read_running_loss, train_epoch, train_step
from mpvg_minimal.training.recipes import Recipe, learning_rate
from mpvg_minimal.training.run import parameter_groups, start_run
from mpvg_minimal.training.task import CLASSIFICATION

CPU = torch.device("cpu")


def tiny(pool="gap", **options):
    torch.manual_seed(3)
    return ViT(image_size=8, patch_size=4, width=16, depth=2, heads=2, num_classes=5, pool=pool, **options)


RECIPE = Recipe(model="tiny", epochs=2, batch_size=8, lr=1e-2, final_lr=1e-4, warmup=0.1, weight_decay=0.1,
                label_smoothing=0.1)


def batch(size=8):
    return torch.randn(size, 3, 8, 8), torch.randint(5, (size,))


def new_run(tmp_path, model=None, task=CLASSIFICATION, **changed):
    return start_run(model or tiny(), replace(RECIPE, **changed), out=tmp_path, device=CPU, task=task)


def test_weight_decay_is_for_the_weights_of_linear_maps_alone():
    model = tiny("cls")
    names = {id(p): name for name, p in model.named_parameters()}
    decay, rest = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.3))
    assert [group["weight_decay"] for group in parameter_groups(model, 0.3)] == [0.3, 0.0]
    maps = ["patch_embed.proj", "head"] + [f"blocks.{i}.{m}" for i in range(2)
                                           for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert set(decay) == {f"{name}.weight" for name in maps}
    assert {"pe.pos_embed", "cls_token", "head.bias", "pe.norms.0.weight", "last_norm.pe_norm.weight"} <= set(rest)
    assert len(decay) + len(rest) == len(names)


def test_only_copies_to_a_gpu_of_cuda_go_on_in_the_background(tmp_path, monkeypatch):
    """test_device_step.py shows that those do. A CPU stands for MPS here, which reads memory that was freed."""
    given, copies, original = batch(), [], torch.Tensor.to

    def to(tensor, *device, **options):
        copies.extend(options["non_blocking"] for part in given if part is tensor)
        return original(tensor, *device, **options)
    monkeypatch.setattr(torch.Tensor, "to", to)
    fit(new_run(tmp_path, epochs=1), Given([given]), Given([given]), normalize=lambda images: images)
    assert copies == [False] * 4                                    # images and labels, in training and in testing


def test_learning_rate_warms_up_and_follows_half_a_cosine():
    rate = [learning_rate(u, 300, lr=6e-4, final_lr=1e-5, warmup=1 / 30) for u in range(301)]
    assert rate[:10] == pytest.approx([6e-4 * (u + 1) / 10 for u in range(10)])
    assert rate[10:] == pytest.approx([1e-5 + 5.9e-4 * (math.cos(math.pi * (u - 10) / 290) + 1) / 2
                                       for u in range(10, 301)])
    cooled = [learning_rate(u, 310, lr=6e-4, final_lr=1e-5, warmup=10 / 310, cooldown=10 / 310) for u in range(310)]
    assert cooled == pytest.approx(rate[:300] + [1e-5] * 10)                # the same, then flat


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_a_step_is_adamw_by_its_formula(tmp_path, clip):
    """Decoupled weight decay and bias-corrected moments, written out in float64."""
    run = new_run(tmp_path, tiny().double(), clip_grad=clip)
    images, labels = batch()
    images = images.double()                                    # Adam divides by small gradients: rounding would show
    reference = copy.deepcopy(run.model)
    moments = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in reference.named_parameters()}
    for t, lr in enumerate((1e-2, 3e-3), start=1):
        train_step(run, images, labels, lr=lr, label_smoothing=0.1, clip_grad=clip)
        reference.zero_grad()
        log_p = reference(images).log_softmax(1)
        target = torch.full((8, 5), 0.1 / 5, dtype=torch.float64)
        target[range(8), labels] += 0.9
        (-(target * log_p).sum(1).mean()).backward()
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in reference.parameters()))
        share = min(1.0, clip / norm) if clip else 1.0
        with torch.no_grad():
            for name, p in reference.named_parameters():
                g, (m, v) = p.grad * share, moments[name]
                decay = 0.1 if p.ndim > 1 and name != "pe.pos_embed" else 0.0
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p.mul_(1 - lr * decay).sub_(lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
    for (name, ours), (_, theirs) in zip(run.model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    assert run.updates == run.step == 2


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulation_changes_nothing_but_rounding(tmp_path, parts):
    images, labels = batch()
    runs = [new_run(tmp_path) for _ in range(2)]
    before = copy.deepcopy(runs[0].model.state_dict())
    train_step(runs[0], images, labels, lr=1e-2)
    train_step(runs[1], images, labels, lr=1e-2, accumulate=parts)
    torch.testing.assert_close(runs[0].totals, runs[1].totals, rtol=1e-6, atol=1e-6)
    for p, q in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    assert not torch.equal(before["head.weight"], runs[1].model.head.weight)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_averaged_model_is_torchs_bit_for_bit(tmp_path, decay):
    run = new_run(tmp_path, ema=decay)
    theirs = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    for _ in range(4):
        train_step(run, *batch(), lr=1e-2)
        theirs.update_parameters(run.model)
    assert not torch.equal(run.ema.head.weight, run.model.head.weight)
    assert difference(run.ema.state_dict(), theirs.module.state_dict()) is None


@pytest.mark.parametrize("save_every, expected", [
    (60.0, [75.0, 150.0, 200.0]), (1000.0, [200.0]), (0.0, [25.0 * epoch for epoch in range(1, 9)])])
def test_checkpoints_come_at_most_so_often_and_at_the_end(tmp_path, monkeypatch, save_every, expected):
    """By a clock that moves on by 25 seconds in each of eight epochs."""
    clock, saves = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    run = new_run(tmp_path, epochs=8)

    def normalize(images):
        clock[0] += 12.5                                            # one batch to train, one to test
        return images
    save = run.save
    monkeypatch.setattr(run, "save", lambda: (saves.append(clock[0] - 100.0), save()))
    fit(run, Given([batch()]), Given([batch()]), normalize=normalize, save_every=save_every)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 8
    assert saves == expected


def test_totals_are_the_epochs_loss_and_hits(tmp_path):
    run = new_run(tmp_path)
    loss = correct = 0.0
    for _ in range(3):
        images, labels = batch()
        with torch.no_grad():
            logits = run.model(images)
        loss += cross_entropy(logits, labels).item() * 8
        correct += (logits.argmax(1) == labels).sum().item()
        train_step(run, images, labels, lr=1e-2)
    assert run.totals.tolist() == pytest.approx([loss, correct], rel=1e-5)
    assert read_running_loss(run) == pytest.approx((loss / 24, 100 * correct / 24), rel=1e-5)


def test_evaluation_weighs_every_image_once_also_in_a_smaller_last_batch():
    model, sizes = tiny(), (8, 8, 3)
    batches = [batch(size) for size in sizes]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        logits = model.eval()(images).double()
    top1 = 100 * (logits.argmax(1) == labels).double().mean().item()
    loss = -logits.log_softmax(1)[range(19), labels].mean().item()
    result = CLASSIFICATION.evaluate(model.train(), Given(batches), normalize=lambda x: x, device=CPU,
                                     autocast=torch.autocast("cpu", enabled=False))
    assert result == pytest.approx({"test_loss": loss, "top1": top1}, rel=1e-5) and not model.training


def test_a_steps_randomness_comes_from_seed_epoch_and_step_alone(tmp_path):
    """Dropout draws the same whatever was drawn before, and other numbers in another epoch."""
    def weights(epoch, seed=0, disturb=False):
        run = new_run(tmp_path, tiny(attention_dropout=0.2, stochastic_depth=0.2), seed=seed)
        run.epoch = epoch
        if disturb:
            torch.rand(1000)
        train_epoch(run, Given(batches), normalize=lambda x: x, mix=None, interrupt=Interrupt())
        return torch.cat([p.detach().flatten() for p in run.model.parameters()])

    batches = [batch() for _ in range(2)]
    assert torch.equal(weights(0), weights(0, disturb=True))
    assert not torch.equal(weights(0), weights(1))
    assert not torch.equal(weights(0), weights(0, seed=1))


def test_fit_returns_a_line_an_epoch_and_leaves_the_signals_as_they_were(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run = new_run(tmp_path, epochs=2)
    history = fit(run, Given([batch() for _ in range(4)]), Given([batch()]), normalize=lambda x: x)
    assert [line["epoch"] for line in history] == [1, 2] and run.updates == 8
    assert history[-1]["lr"] == pytest.approx(learning_rate(7, 8, lr=1e-2, final_lr=1e-4, warmup=0.1))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
