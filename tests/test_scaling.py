"""The table of hours: its arithmetic, and that the README shows what it says."""
import io
import json

import pytest
from conftest import ROOT
from PIL import Image

from mpvg_minimal.tools import scaling

SAMPLES = 300 * 1_281_167                           # images in 300 epochs of ImageNet


@pytest.mark.parametrize("gpus", [1, 8, 32])
def test_the_slowest_of_the_three_limits(gpus):
    """Each of them by hand, with the other two made small."""
    arithmetic = 1e9 * SAMPLES / (gpus * 0.2 * 989e12) / 3600
    assert scaling.hours(1e9, 0, gpus, 0) == (pytest.approx(arithmetic), "GPU")
    assert scaling.hours(1.0, 0, gpus, 0.004) == (pytest.approx(0.004 * SAMPLES / (16 * gpus) / 3600), "images")
    bandwidth = {1: None, 8: 225e9, 32: 25e9}[gpus]
    if bandwidth:                                   # a ring: every GPU sends (n - 1) / n of its gradients twice
        step = 2 * (gpus - 1) / gpus * 400e6 / bandwidth
        assert scaling.hours(1.0, 400e6, gpus, 0) == (pytest.approx(step * SAMPLES / 1024 / 3600), "network")
    else:
        assert scaling.hours(1.0, 400e6, 1, 0)[1] == "GPU"
    together = scaling.hours(1e9, 0, gpus, arithmetic * 3600 / SAMPLES * 16 * gpus * 1.5)
    assert together == (pytest.approx(1.5 * arithmetic), "images")


def test_photographs_are_as_large_as_imagenets():
    content = io.BytesIO()
    scaling.photograph(0).save(content, "JPEG", quality=scaling.QUALITY)
    assert Image.open(content).size == (500, 375) and 90e3 < len(content.getvalue()) < 130e3


def test_what_is_measured_is_what_a_run_does(tmp_path):
    result = scaling.measure(2, 1)
    assert 0.4 < result["kilobytes"]["cached"] / result["kilobytes"]["original"] < 0.8
    for times in result["milliseconds"].values():
        assert 0 < times["decoded"] < times["augmented"]


def test_the_readmes_table_and_figures_are_the_ones_worked_out():
    milliseconds = json.loads((ROOT / "results" / "images_cpu.json").read_text())["milliseconds"]
    augmented = {kind: times["augmented"] for kind, times in milliseconds.items()}
    readme = (ROOT / "README.md").read_text()
    assert scaling.table(augmented) in readme
    said = " ".join(readme.split())
    assert "takes a core {original:.1f} ms, and {cached:.1f} ms from the cache".format(**augmented) in said
