"""The training recipes, in one place, and the learning rate that they ask for.

A recipe is for its full length. A shorter run keeps its proportions: warm-up and cool-down are shares of all updates.
"""
import math
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained. A name that is no field is a TypeError."""

    model: str                              # one of `SIZES` in vit.py
    epochs: int
    batch_size: int                         # images of one update, over all processes
    lr: float                               # learning rate at its peak, for that batch size
    final_lr: float                         # learning rate at the end
    warmup: float                           # share of all updates in which the learning rate rises
    cooldown: float = 0.0                   # share of all updates at the end in which the learning rate is final_lr
    weight_decay: float                     # of the weights of linear maps; nothing else decays
    label_smoothing: float = 0.0
    clip_grad: float = 0.0                  # largest norm of the whole gradient; 0: any
    mixup: float = 0.0                      # alpha; 0: no mixup
    cutmix: float = 0.0                     # alpha; 0: no cutmix
    augment: dict[str, Any] | None = None   # the options of `augmentation` in data/sources.py; None: images as they are
    stochastic_depth: float = 0.0           # rate of the last block
    attention_dropout: float = 0.0
    ema: float = 0.0                        # decay of the averaged copy of the weights; 0: no copy
    accumulate: int = 1                     # parts in which each process takes its share of a batch, to save memory
    seed: int = 0                           # of everything that is drawn at random
    detector: dict[str, Any] | None = None  # the options of `Detector` in dense/detection.py


def learning_rate(update: int, total: int, *, lr: float, final_lr: float, warmup: float,
                  cooldown: float = 0.0) -> float:
    """Linear warm-up over the share `warmup` of all updates, then half a cosine from lr to final_lr.

    The rate stays at final_lr over the last share, `cooldown`.
    """
    ramp = round(warmup * total)
    if update < ramp:
        return lr * (update + 1) / ramp
    progress = min((update - ramp) / max(total - ramp - round(cooldown * total), 1), 1.0)
    return final_lr + (lr - final_lr) * (1 + math.cos(math.pi * progress)) / 2


# The README's first command: 99.90 to 100.00 % with each of the seeds 0 to 5 on a CPU. Fewer epochs are not safe.
# No augmentation: it would move the shapes, and where they stand is the label.
SHAPES = Recipe(
    model="vit_nano", epochs=3, batch_size=128,
    lr=1e-3, final_lr=1e-5, warmup=1 / 30, weight_decay=0.05, clip_grad=1.0)

# The same images with masks and boxes (dense/targets.py): under 60 seconds, and under 3 minutes.
DENSE_SHAPES = {
    "segmentation": replace(SHAPES, epochs=8),
    "detection": replace(SHAPES, epochs=4, detector=dict(channels=64, levels=[2, 1], convs=1, padding="circular"))}

# ViT-Lite on CIFAR-100: Compact-Transformers (Hassani et al. 2021), https://github.com/SHI-Labs/Compact-Transformers,
# and the paper's Table 7: 300 epochs, then 10 at the final rate. Their recipe for CIFAR-10 has lr 5.5e-4, and no mixup
# after epoch 175.
CIFAR = Recipe(
    model="vit_lite", epochs=310, batch_size=128,
    lr=6e-4, final_lr=1e-5, warmup=10 / 310, cooldown=10 / 310, weight_decay=0.06, label_smoothing=0.1,
    mixup=0.8, cutmix=1.0, augment=dict(scale=[0.8, 1.0], rand_augment=9, erasing=0.25),
    stochastic_depth=0.1, attention_dropout=0.1)

# DeiT on ImageNet-1k (Touvron et al. 2021), batch 1024 in all, without distillation and repeated augmentation.
IMAGENET = Recipe(
    model="deit_tiny", epochs=300, batch_size=1024,
    lr=1e-3, final_lr=1e-5, warmup=5 / 300, weight_decay=0.05, label_smoothing=0.1,
    mixup=0.8, cutmix=1.0, augment=dict(scale=[0.08, 1.0], rand_augment=9, erasing=0.25),
    stochastic_depth=0.1)

# VOC, COCO, ADE20K, from a pretrained classifier: ours, not measured. Rate and batch are ViTDet's (Li et al. 2022).
DENSE = Recipe(
    model="deit_tiny", epochs=50, batch_size=64,
    lr=1e-4, final_lr=1e-6, warmup=1 / 50, weight_decay=0.05, clip_grad=1.0,
    augment=dict(scale=[0.5, 1.0]), stochastic_depth=0.1,
    detector=dict(channels=256, levels=[4, 2, 1, 0.5], convs=4, padding="zeros"))
