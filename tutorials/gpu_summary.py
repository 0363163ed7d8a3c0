"""What a first day with a GPU found, beside what was expected: the page that gpu_day.py writes."""
import json
from pathlib import Path
from typing import Any

EXPECTED = ("Expected by arithmetic alone, before a GPU was at hand, from the kernels of a step and some microseconds "
            "to launch each: 300 epochs of CIFAR-10 in 9 to 17 minutes eager, and in 4.5 to 7.5 with CUDA graphs.")


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def to_timm(rows: list[dict[str, Any]], model: str) -> str | None:
    """Our training images/s relative to timm's, PE once and MPVG."""
    of = {row["variant"]: row["train_images_per_second"] for row in rows if row["model"] == model
          and "train_images_per_second" in row}
    return f"{of['once'] / of['timm']:.2f}, MPVG {of['mpvg'] / of['timm']:.2f}" if "timm" in of else None


def share(file: Any) -> str | None:
    return f"{file['limit']['share']:.1%}, {file['limit']['images_per_second']:,.0f} images/s" if file else None


def found(out: Path) -> list[tuple[str, str, str | None]]:
    """(what, goal, what was measured or None) for every number."""
    waits, epochs = read(out / "waits.json"), read(out / "epochs.json")
    costs = {kind: (read(out / f"cost_cuda{end}.json") or {"rows": []})["rows"]
             for kind, end in (("eager", ""), ("compiled", "_compiled"))}
    speed = read(out / "throughput_cuda_vit_lite_limit_batch.json")
    tests = (out / "tests.txt").read_text().splitlines() if (out / "tests.txt").exists() else []
    counts = [line.strip("= ") for line in tests if " passed" in line or " failed" in line]
    lines = [("waits in 70 steps, plain and averaged", "0", None if not waits or waits["waits"] is None else "0"),
             ("tests on the card", "all pass", counts[-1] if counts else None)]
    for kind, rows in costs.items():
        for model in ("vit_lite", "deit_small"):
            lines.append((f"{model}, {kind}: training images/s relative to timm's", "1.10", to_timm(rows, model)))
    return lines + [
        ("ViT-Lite, batch 128: share of the card's FLOP/s, images/s", "10 %", share(speed)),
        ("the same with CUDA graphs", "10 %", share(read(out / "throughput_cuda_vit_lite_limit.json"))),
        ("DeiT-S, batch 256: share of the card's FLOP/s", "25 %",
         share(read(out / "throughput_cuda_deit_small_limit.json"))),
        ("ViT-Lite, images/s by batch size", "does not fall",
         speed and ", ".join(f"{size}: {rate:,.0f}" for size, rate in speed["batch"].items())),
        ("minutes of 300 epochs of CIFAR-10, CUDA graphs", "5",
         epochs and f"{epochs['minutes_of_300']} ({epochs['data']}, {epochs['images_per_second']:,.0f} images/s)")]


def summary(out: Path, environment: dict[str, str], ends: dict[str, str], *, tiny: bool) -> str:
    """In Markdown: goals and measurements, and how each part ended."""
    rows = [f"| {what} | {goal} | {measured if measured and not tiny else 'not measured'} |"
            for what, goal, measured in found(out)]
    return "\n".join([
        "# A first day with a GPU", "", f"{environment['device']}, torch {environment['torch']}, commit "
        f"{environment['commit']}: `python tutorials/gpu_day.py{' --tiny' * tiny}`.", "",
        "| | goal | measured |", "|---|---|---|", *rows, "", EXPECTED, "",
        *[f"- {part}: {end}" for part, end in ends.items()], ""])
