"""Exported files give the model's own outputs, for other batch sizes too, and PE is in them."""
import importlib.util
import shutil

import pytest
import torch
from runs import one_line, run
from test_dense import detector, spread, vit

from mpvg_minimal.dense.segmentation import Segmenter
from mpvg_minimal.runtime.errors import UserError
from mpvg_minimal.tools.export import ONNX, export


@pytest.mark.parametrize("kind", ["classifier, gap", "classifier, cls", "segmenter"])
def test_the_files_give_the_models_outputs(kind, tmp_path):
    model = spread(Segmenter(vit(), 3) if kind == "segmenter" else vit(pool=kind[-3:]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.train().modules()]
    difference = export(model, (16, 24), tmp_path)
    assert [part.training for part in model.modules()] == modes and model.training      # its own mode, not evaluation's
    model.eval()
    scale = model(torch.randn(5, 3, 16, 24)).abs().max().item()
    assert difference["model.pt2"] < 1e-5 * scale
    assert ("model.onnx" in difference) == all(map(importlib.util.find_spec, ONNX))
    assert difference.get("model.onnx", 0) < 1e-5 * scale
    program = torch.export.load(tmp_path / "model.pt2")
    assert not [name for name in program.state_dict if "pe_norm" in name or "pe.norms" in name]     # folded
    images = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images), rtol=1e-5, atol=1e-5)
        getattr(model, "vit", model).last_norm.pe_norm.bias.add_(torch.randn(16))
        assert (program.module()(images) - model(images)).abs().max() > 0.01    # PE at the last norm counts
        for name, value in before.items():
            assert "last_norm.pe_norm.bias" in name or torch.equal(model.state_dict()[name], value)


def test_the_command_on_a_classification_run_with_and_without_the_packages(finished, tmp_path):
    out = shutil.copytree(finished / "shapes", tmp_path / "run")

    def without():
        original = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if "onnx" in name else original(name, *rest)

    done = run("mpvg_minimal.tools.export", out, fault=without)
    assert done.code == 0 and "pip install onnx onnxscript" in done.out and (out / "model.pt2").exists(), done.err
    assert float(done.out.split("largest difference ")[1].split()[0]) < 1e-5 and not (out / "model.onnx").exists()
    one_line(run("mpvg_minimal.tools.export", tmp_path / "none"))


def test_a_detector_is_refused(tmp_path):
    with pytest.raises(UserError, match="detector"):
        export(detector([1]), (16, 24), tmp_path)
