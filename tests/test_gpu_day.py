"""The command for a first day with a GPU, as far as a CPU can show that it works."""
import json
import re
import sys
import time

import gpu_day
import gpu_summary
import pytest
from runs import ended, fork

MACHINE = {"device": "cuda: a card", "torch": "2.x", "commit": "abc"}


def run(out, *flags):
    def start():
        sys.argv = ["gpu_day.py", "--out", str(out), *flags]
        gpu_day.main()
    return ended(fork(start, {"OMP_NUM_THREADS": "1"}), 240)


@pytest.mark.slow
def test_every_part_works_with_tiny_settings_on_a_cpu(tmp_path):
    done = run(tmp_path, "--tiny", "--device", "cpu", "--parts", *gpu_day.COMMANDS)
    assert done.code == 0, done.out + done.err
    assert json.loads((tmp_path / "waits.json").read_text())["steps"] == 70
    epochs = json.loads((tmp_path / "epochs.json").read_text())
    usual = sorted(epochs["seconds"][1:])
    expected = (epochs["seconds_in_all"] + 297 * (usual[0] + usual[1]) / 2) / 60
    assert len(epochs["seconds"]) == 3 and epochs["minutes_of_300"] == pytest.approx(expected, abs=0.02)
    assert epochs["data"] == "synthetic images of CIFAR-10's shape"
    ran = [part for part, command in gpu_day.COMMANDS.items() if command[2]]
    ended = re.findall(r"^- (.+): (.*)", done.out, re.MULTILINE)
    assert [part for part, how in ended if how.startswith("ended well")] == ran, ended
    assert done.out.count("| not measured |") == len(gpu_summary.found(tmp_path)) >= 11     # a CPU's numbers are none
    assert (tmp_path / "summary.md").read_text() in done.out


def test_without_a_gpu_it_measures_nothing(tmp_path):
    done = run(tmp_path / "out")
    assert done.code == 2 and done.err.startswith("error: there is no GPU here") and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_or_hangs_costs_only_itself(tmp_path):
    assert gpu_day.start(["-c", "print(3); exit(5)"], tmp_path / "a.txt", 60).startswith("exit code 5, ")
    assert (tmp_path / "a.txt").read_text().endswith("exit(5)\n3\n")
    child = "import time; print(1, flush=True); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    began = time.monotonic()
    assert gpu_day.start(["-c", child], tmp_path / "b.txt", 3).startswith("stopped after its 3 s, ")
    assert time.monotonic() - began < 10 and (tmp_path / "b.txt").read_text().endswith("\n1\n")


def test_its_time_is_nine_minutes():
    assert sum(seconds for seconds, *_ in gpu_day.COMMANDS.values()) <= 9 * 60


def test_the_summary_shows_what_was_measured_beside_the_goals(tmp_path):
    row = {"model": "vit_lite", "compiled": False}
    rates = {"once": 1100.0, "mpvg": 1050.0, "timm": 1000.0}
    rows = [row | {"variant": name, "train_images_per_second": rate} for name, rate in rates.items()]
    speed = {"limit": {"share": 0.123, "images_per_second": 45678.0}, "batch": {"128": 40000.0, "256": 41000.0}}
    files = {"waits": {"waits": 0}, "cost_cuda": {"rows": rows}, "throughput_cuda_vit_lite_limit_batch": speed,
             "epochs": {"minutes_of_300": 4.87, "data": "CIFAR-10", "images_per_second": 51000.0}}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "tests.txt").write_text("====== 8 passed, 1 failed in 70.00s ======\n")
    page = gpu_summary.summary(tmp_path, MACHINE, {"waits": "ended well, 3 s"}, tiny=False)
    for line in ("| waits in 70 steps, plain and averaged | 0 | 0 |",
                 "| tests on the card | all pass | 8 passed, 1 failed in 70.00s |",
                 "| vit_lite, eager: training images/s relative to timm's | 1.10 | 1.10, MPVG 1.05 |",
                 "| ViT-Lite, batch 128: share of the card's FLOP/s, images/s | 10 % | 12.3%, 45,678 images/s |",
                 "| ViT-Lite, images/s by batch size | does not fall | 128: 40,000, 256: 41,000 |",
                 "| minutes of 300 epochs of CIFAR-10, CUDA graphs | 5 | 4.87 (CIFAR-10, 51,000 images/s) |",
                 "- waits: ended well, 3 s", "cuda: a card, torch 2.x, commit abc: `python tutorials/gpu_day.py`."):
        assert line in page.splitlines(), page
    assert page.count("| not measured |") == 5
