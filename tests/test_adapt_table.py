"""The table of adapt/README.md: which models of timm and torchvision can be adapted, and why others cannot.

`python tests/test_adapt_table.py` writes it anew. Models are built on the meta device: shapes only, no weights.
"""
import re

import pytest
import torch
import torchvision
from conftest import ROOT
from test_adapt_refusals import state_of

from mpvg_minimal.adapt import NormWithPE, adapt_swin, adapt_timm_vit, adapt_torchvision_vit

PAGE = ROOT / "mpvg_minimal" / "adapt" / "README.md"
HEAD = "| kind | example | MPVG |\n|---|---|---|\n"
TIMM = [                                            # kind, registered name, options
    ("ViT, class token", "vit_tiny_patch16_224", {}),
    ("ViT, GAP, norm before the pooling", "vit_tiny_patch16_224",
     {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    ("ViT, GAP, norm after the pooling", "vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ("ViT, PE for any image size", "vit_tiny_patch16_224", {"dynamic_img_size": True}),
    ("ViT, patches dropped in training", "vit_tiny_patch16_224", {"patch_drop_rate": 0.5}),
    ("ViT, no PE", "vit_tiny_patch16_224", {"pos_embed": "none"}),
    ("DeiT, distilled", "deit_tiny_distilled_patch16_224", {}),
    ("DeiT-III", "deit3_small_patch16_224", {}),
    ("DINOv2, registers", "vit_small_patch14_reg4_dinov2", {}),
    ("EVA-02", "eva02_tiny_patch14_224", {}),
    ("EVA-02, post-norm", "eva02_enormous_patch14_clip_224", {"depth": 2}),
    ("ViT, post-norm", "vit_base_patch16_rpn_224", {}),
    ("ViT, parallel blocks", "vit_base_patch16_xp_224", {}),
    ("BEiT", "beit_base_patch16_224", {}),
    ("CaiT", "cait_xxs24_224", {}),
    ("ConViT", "convit_tiny", {}),
    ("XCiT", "xcit_nano_12_p16_224", {}),
    ("timm's Swin", "swin_tiny_patch4_window7_224", {}),
    ("MLP-Mixer", "mixer_s32_224", {}),
    ("ConvNeXt", "convnext_atto", {}),
]
TORCHVISION = [                                     # kind, name, helper
    ("ViT", "vit_b_16", adapt_torchvision_vit),
    ("Swin", "swin_t", lambda model, *args, **options: adapt_swin(model, 224, *args, **options)),
    ("Swin V2", "swin_v2_t", lambda model, *args, **options: adapt_swin(model, 224, *args, **options)),
    ("ResNet", "resnet18", adapt_torchvision_vit),
]


def outcome(build, adapt, size=(224, 224)) -> str:
    """What happens with MPVG, and else with PVG; an adapted model has to run on images, in training and evaluation."""
    reasons = []
    for schedule in ("mpvg", "pvg"):
        with torch.device("meta"), torch.no_grad():
            model = build()
            before = state_of(model)
            try:
                adapt(model, schedule, start="same")
            except ValueError as error:
                assert state_of(model) == before
                reasons.append(re.split(": |, expected|, and |, but this", str(error))[0])
                continue
            images = torch.empty(2, 3, *getattr(getattr(model, "patch_embed", None), "img_size", size))
            assert model.train()(images).shape[0] == model.eval()(images).shape[0] == 2
            assert any(isinstance(module, NormWithPE) for module in model.modules())
        return "adapted" if schedule == "mpvg" else f"PVG only: `{reasons[0]}`"
    return f"refused: `{reasons[0]}`"


def table() -> str:
    import timm
    rows = [("timm", kind, name, outcome(lambda: timm.create_model(name, **options), adapt_timm_vit))
            for kind, name, options in TIMM]
    rows += [("torchvision", kind, name, outcome(getattr(torchvision.models, name), adapt))
             for kind, name, adapt in TORCHVISION]
    return HEAD + "".join(f"| {kind} | `{library}: {name}` | {result} |\n" for library, kind, name, result in rows)


def shown() -> str:
    """The table as it stands there: from its head to the next empty line."""
    _, found, rest = PAGE.read_text().partition(HEAD)
    return found + rest[:rest.index("\n\n") + 1]


def test_the_table_says_what_happens():
    pytest.importorskip("timm")
    assert shown() == table(), "python tests/test_adapt_table.py writes it anew"


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().replace(shown(), table()))
