"""The training recipes, in one place. `fit` in train.py takes each key as an argument, `augmentation` in data.py too.

A recipe is for its full length. A shorter run keeps its proportions: warm-up, and cool-down at the final
rate, are shares of the steps.
"""

# Under 60 seconds on two CPU cores. No augmentation: it would move the shapes, and where they stand is the label.
SHAPES = dict(
    model="vit_nano", epochs=8, batch_size=128,
    lr=1e-3, final_lr=1e-5, warmup=1 / 30, cooldown=0.0, weight_decay=0.05, label_smoothing=0.0, clip_grad=1.0,
    mixup=0.0, cutmix=0.0, augment=None,
    stochastic_depth=0.0, attention_dropout=0.0, ema=0.0)

# The same images with masks and boxes, see targets.py: under 60 seconds, and under 3 minutes.
DENSE_SHAPES = {
    "segmentation": SHAPES,
    "detection": SHAPES | dict(epochs=4, detector=dict(channels=64, levels=[2, 1], convs=1, padding="circular"))}

# ViT-Lite on CIFAR-100: Compact-Transformers (Hassani et al. 2021), https://github.com/SHI-Labs/Compact-Transformers,
# and the paper's Table 7: 300 epochs, then 10 at the final rate. Their recipe for CIFAR-10 has lr 5.5e-4, and no mixup
# after epoch 175.
CIFAR = dict(
    model="vit_lite", epochs=310, batch_size=128,
    lr=6e-4, final_lr=1e-5, warmup=10 / 310, cooldown=10 / 310, weight_decay=0.06, label_smoothing=0.1, clip_grad=0.0,
    mixup=0.8, cutmix=1.0, augment=dict(scale=[0.8, 1.0], rand_augment=9, erasing=0.25),
    stochastic_depth=0.1, attention_dropout=0.1, ema=0.0)

# DeiT on ImageNet-1k (Touvron et al. 2021), batch 1024 in all, without distillation and repeated augmentation.
IMAGENET = dict(
    model="deit_tiny", epochs=300, batch_size=1024,
    lr=1e-3, final_lr=1e-5, warmup=5 / 300, cooldown=0.0, weight_decay=0.05, label_smoothing=0.1, clip_grad=0.0,
    mixup=0.8, cutmix=1.0, augment=dict(scale=[0.08, 1.0], rand_augment=9, erasing=0.25),
    stochastic_depth=0.1, attention_dropout=0.0, ema=0.0)

# VOC, COCO, ADE20K, from a pretrained classifier: ours, not measured. Rate and batch are ViTDet's (Li et al. 2022).
DENSE = dict(
    model="deit_tiny", epochs=50, batch_size=64,
    lr=1e-4, final_lr=1e-6, warmup=1 / 50, cooldown=0.0, weight_decay=0.05, label_smoothing=0.0, clip_grad=1.0,
    mixup=0.0, cutmix=0.0, augment=dict(scale=[0.5, 1.0]),
    stochastic_depth=0.1, attention_dropout=0.0, ema=0.0,
    detector=dict(channels=256, levels=[4, 2, 1, 0.5], convs=4, padding="zeros"))
