"""A NaN or infinite loss: fp32 and bf16 stop before the update, fp16 skips the step and gives up in the end."""
import copy
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from runs import difference, one_line, run, small_shapes
from torch import nn

import train_cifar
from mpvg_minimal.data.batches import Batches
from mpvg_minimal.runtime.errors import NonFinite
from mpvg_minimal.training import checkpoint, loop, recipes
from mpvg_minimal.training.run import start_run
from mpvg_minimal.training.task import CLASSIFICATION

CPU = torch.device("cpu")
STEPS = 6
RECIPE = replace(recipes.SHAPES, epochs=3, batch_size=16, ema=0.9, clip_grad=0.0)


class Bias(nn.Module):
    """Logits that do not depend on the image: without a matrix product, which bf16 on CPU may not survive."""

    def __init__(self, *values: float):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(values))

    def forward(self, images):
        return self.logits.expand(len(images), -1) + images.flatten(1).mean(1, keepdim=True)


def new_run(tmp_path, *, amp=None, model=None, **changed):
    model = model or Bias(*[0.0] * 16)
    torch.manual_seed(0)
    new = start_run(model, replace(RECIPE, **changed), out=tmp_path, device=CPU, amp=amp)
    new.scaler = torch.amp.GradScaler("cpu", init_scale=1024, growth_interval=1000, enabled=amp is torch.float16)
    return new


def batches():
    source = small_shapes()
    return [Batches(part, None, batch_size=16, train=part is source.train) for part in (source.train, source.test)]


def moving(of) -> dict:
    """What an update moves, copied."""
    return copy.deepcopy({"model": of.model.state_dict(), "optimizer": of.optimizer.state_dict()["state"],
                          "ema": of.ema.state_dict(), "updates": of.updates})


class Fault:
    """A `normalize` that returns `value` in all pixels in the chosen calls, from 1, and remembers the run before it."""

    def __init__(self, of, value: float, *calls: int):
        self.run, self.value, self.calls, self.call, self.snapshots = of, value, calls, 0, []

    def __call__(self, images):
        if torch.is_grad_enabled():                 # not in an evaluation
            self.call += 1
            if self.call in self.calls:
                self.snapshots.append(moving(self.run))
                return torch.full(images.shape, self.value)
        return images.float() / 255


@pytest.mark.promise("non-finite")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize("epoch, step", [(1, 1), (2, 4), (3, STEPS)])
def test_stops_before_the_update_and_says_where(tmp_path, value, amp, epoch, step):
    stopped = new_run(tmp_path, amp=amp)
    fault = Fault(stopped, value, (epoch - 1) * STEPS + step)
    with pytest.raises(NonFinite) as error:
        loop.fit(stopped, *batches(), normalize=fault)
    assert f"not finite in epoch {epoch}, step {step};" in str(error.value) and error.value.exit_code == 1
    last = f"the last good checkpoint is after {epoch - 1} epochs and 0 steps" if epoch > 1 else "no checkpoint yet"
    assert last in str(error.value)
    now = moving(stopped)
    assert difference(now["model"], fault.snapshots[0]["model"]) is None
    if epoch > 1:                                   # before the very first step the optimizer has no state
        assert difference(now["optimizer"], fault.snapshots[0]["optimizer"]) is None
        saved = checkpoint.read(tmp_path / checkpoint.NEWEST)
        assert saved["epoch"] == epoch - 1
        assert all(tensor.isfinite().all() for tensor in saved["model"].values())
    else:
        assert not (tmp_path / checkpoint.NEWEST).exists()


@pytest.mark.promise("non-finite")
def test_an_infinite_loss_with_finite_gradients_stops_too(tmp_path):
    """softmax - target is finite where log softmax is not, so the gradients alone would not tell."""
    stopped = new_run(tmp_path, model=Bias(3e38, -3e38), ema=0.0)
    images, targets = torch.zeros(4, 3, 8, 8), torch.ones(4, dtype=torch.int64)
    loop.train_step(stopped, images, targets, lr=1.0)
    assert stopped.model.logits.grad.isfinite().all()
    assert stopped.model.logits.tolist() == torch.tensor([3e38, -3e38]).tolist()
    with pytest.raises(NonFinite, match="epoch 1, step 1"):
        loop.read_running_loss(stopped)


@pytest.mark.promise("non-finite")
def test_one_part_of_an_accumulated_batch_is_enough(tmp_path):
    stopped = new_run(tmp_path)
    images = torch.zeros(4, 3, 8, 8)
    images[3] = math.nan
    before_it = moving(stopped)["model"]
    loop.train_step(stopped, images, torch.zeros(4, dtype=torch.int64), lr=1.0, accumulate=4)
    assert difference(moving(stopped)["model"], before_it) is None
    with pytest.raises(NonFinite):
        loop.read_running_loss(stopped)


@pytest.mark.promise("non-finite")
def test_an_interrupt_after_a_bad_step_saves_nothing(tmp_path):
    stopped = new_run(tmp_path)
    fault = Fault(stopped, math.nan, STEPS + 3)

    def normalize(images):
        if fault.call == STEPS + 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return fault(images)

    with pytest.raises(NonFinite, match="epoch 2, step 3"):
        loop.fit(stopped, *batches(), normalize=normalize)
    saved = checkpoint.read(tmp_path / checkpoint.NEWEST)
    assert (saved["epoch"], saved["step"]) == (1, 0)


@pytest.mark.promise("non-finite")
def test_the_last_good_checkpoint_may_be_one_in_mid_epoch(tmp_path):
    first = new_run(tmp_path)
    first.epoch, first.step = 1, 2
    first.save()
    resumed = new_run(tmp_path)
    resumed.load()
    with pytest.raises(NonFinite, match="the last good checkpoint is after 1 epochs and 2 steps"):
        loop.fit(resumed, *batches(), normalize=Fault(resumed, math.nan, 1))


@pytest.mark.promise("non-finite")
def test_the_script_ends_with_one_line(tmp_path):
    def fault():
        normalizer = train_cifar.normalizer
        train_cifar.normalizer = lambda *args: lambda images, ready=normalizer(*args): ready(images) * math.nan
    flags = ("--dataset", "shapes", "--batch-size", 16, "--workers", 0, "--out", tmp_path)
    stopped = run("train_cifar", *flags, fault=fault)
    one_line(stopped, "error: the loss or its gradient is not finite in epoch 1, step 1; no update", code=1)


@pytest.mark.promise("non-finite")
@pytest.mark.parametrize("epochs, step", [(1, None), (3, None), (1, STEPS)])
def test_a_last_step_that_spoils_the_weights_is_not_saved(tmp_path, epochs, step):
    """All steps of the first epoch have a finite loss. With two such epochs before it, one good checkpoint is kept."""
    def fault():
        if step:                                    # only the last step of the epoch, and no test loss that would tell
            rate = loop.learning_rate
            loop.learning_rate = lambda update, *args, **options: 1e38 if update == step - 1 else rate(
                update, *args, **{**options, "lr": 1e-3})
            CLASSIFICATION.evaluate.__globals__["cross_entropy"] = lambda *_, **__: torch.tensor(1.0)
    flags = ("--dataset", "shapes", "--batch-size", 96 if not step else 16, "--workers", 0, "--epochs", epochs)
    stopped = run("train_cifar", *flags, *(() if step else ("--lr", "1e38")), "--out", tmp_path, fault=fault)
    one_line(stopped, "is not finite", "Start again with a smaller --lr, in another --out", code=1)
    assert "test accuracy" not in stopped.out
    assert not list(tmp_path.glob("checkpoint*")) and not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.promise("non-finite")
@pytest.mark.parametrize("spoil", ["weights", "average", "metric"])
def test_nothing_that_is_not_finite_is_written(tmp_path, spoil):
    """What was saved before stays as it is."""
    saving = new_run(tmp_path)
    saving.epoch, saving.history = 1, [{"epoch": 1, "test_loss": 1.0, "correlation": [None, 0.5]}]
    saving.save()
    before_it = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if spoil == "metric":
        saving.epoch, saving.history = 2, [*saving.history, {"epoch": 2, "test_loss": math.nan}]
    else:
        saving.step = 4
        next((saving.model if spoil == "weights" else saving.ema).parameters()).data[1] = math.inf
    with pytest.raises(NonFinite, match="(test_loss of epoch 2|a weight) is not finite any more; the last good "
                                        "checkpoint is after 1 epochs and 0 steps"):
        saving.save()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before_it


@pytest.mark.promise("non-finite")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_fp16_skips_the_step_and_nothing_moves(tmp_path, monkeypatch, value):
    run_fp16 = new_run(tmp_path, amp=torch.float16)
    fault = Fault(run_fp16, value, STEPS + 2, STEPS + 3)
    rates, after = [], []
    original = loop.train_step

    def step(*args, lr, **options):
        original(*args, lr=lr, **options)
        rates.append(lr)
        after.append((moving(run_fp16), run_fp16.scaler.get_scale(), run_fp16.skipped))

    monkeypatch.setattr(loop, "train_step", step)
    history = loop.fit(run_fp16, *batches(), normalize=fault)
    first, second = STEPS + 1, STEPS + 2            # positions of the two skipped steps
    for position, snapshot in zip((first, second), fault.snapshots):
        assert difference(after[position][0], snapshot) is None
    assert [after[n][1] for n in (first - 1, first, second, second + 1)] == [1024, 512, 256, 256]
    assert [after[n][2] for n in (first - 1, first, second, second + 1)] == [0, 1, 2, 0]
    assert rates[first] == rates[second] == rates[second + 1] != rates[second + 2]      # the schedule waits
    assert run_fp16.updates == 3 * STEPS - 2
    assert difference(after[second + 1][0]["model"], after[second][0]["model"]) is not None     # and goes on
    assert all(math.isfinite(line["train_loss"]) for line in history) and len(history) == 3


@pytest.mark.promise("non-finite")
def test_fp16_gives_up_after_so_many_skips_in_a_row(tmp_path):
    run_fp16 = new_run(tmp_path, amp=torch.float16, epochs=10)
    lone = range(2, 2 * STEPS, 2)                   # skipped steps with a good one between them do not count
    fault = Fault(run_fp16, math.nan, *lone, *range(2 * STEPS + 2, 100))
    with pytest.raises(NonFinite) as error:
        loop.fit(run_fp16, *batches(), normalize=fault)
    assert loop.GIVE_UP == 20
    last = 2 * STEPS + 1 + loop.GIVE_UP            # the step of the 20th in a row, over all epochs
    epoch, step = (last - 1) // STEPS + 1, (last - 1) % STEPS + 1
    assert fault.call == last
    assert f"in fp16 in 20 steps in a row, up to epoch {epoch}, step {step};" in str(error.value)
    assert f"the last good checkpoint is after {epoch - 1} epochs and 0 steps" in str(error.value)
    assert run_fp16.updates == 2 * STEPS + 1 - len(lone)


@pytest.mark.promise("non-finite")
def test_fp16_counts_on_after_a_resume(tmp_path):
    """19 skipped steps in the checkpoint and one more after it are 20."""
    first = new_run(tmp_path, amp=torch.float16)
    first.skipped, first.epoch = loop.GIVE_UP - 1, 1
    first.scaler = torch.amp.GradScaler("cpu", init_scale=0.25)
    first.save()
    resumed = new_run(tmp_path, amp=torch.float16)
    resumed.load()
    assert resumed.scaler.get_scale() == 0.25
    with pytest.raises(NonFinite, match="20 steps in a row, up to epoch 2, step 1"):
        loop.fit(resumed, *batches(), normalize=Fault(resumed, math.nan, 1))


@pytest.mark.promise("non-finite")
def test_a_run_without_faults_is_left_alone(tmp_path):
    quiet = new_run(tmp_path)
    fault = Fault(quiet, math.nan)                  # in no call
    assert len(loop.fit(quiet, *batches(), normalize=fault)) == 3
    assert fault.call == quiet.updates == 3 * STEPS and quiet.non_finite == 0
