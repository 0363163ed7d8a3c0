"""A trained model as a file: `python -m mpvg_minimal.tools.export RUN` writes RUN/model.pt2 and RUN/model.onnx.

The file holds the folded model (fold.py). Input: images (B, 3, H, W), float32, normalized as in training, with any B.
Output: logits (B, K), or scores of every pixel (B, K, H, W). Each file is loaded again and compared with the model
itself. The second file is written if onnx, onnxscript and onnxruntime are installed.
"""
import copy
import importlib.util
import io
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import nn

from ..dense.detection import Detector
from ..dense.segmentation import Segmenter
from ..fold import fold_last_pe
from ..runtime.errors import UserError, one_line_errors
from ..runtime.files import write_whole
from ..training import flags
from . import finished

ONNX = ("onnx", "onnxscript", "onnxruntime")            # what model.onnx needs: to be made, and to be compared
ADVICE = "make room, or make the folder writable, and export again"


def folded(model: nn.Module) -> nn.Module:
    """A classifier or a segmenter, folded for inference. UserError for a detector, whose outputs are lists."""
    if isinstance(model, Detector):
        raise UserError("the outputs of a detector are lists: only classifiers and segmenters can be exported")
    if not isinstance(model, Segmenter):
        return fold_last_pe(model)
    model = copy.deepcopy(model).eval()
    model.vit = fold_last_pe(model.vit, dense=True)
    return model


@torch.no_grad()
def export(model: nn.Module, image_size: tuple[int, int], folder: Path) -> dict[str, float]:
    """Write model.pt2 and, if its packages are installed, model.onnx.

    Returns for each file the largest difference from the outputs of `model`, on images that the export did not see.
    """
    batch = torch.export.Dim("batch")
    program = torch.export.export(folded(model), (torch.randn(2, 3, *image_size),), dynamic_shapes=({0: batch},))
    write_whole(folder / "model.pt2", lambda file: torch.export.save(program, file), advice=ADVICE)
    images = torch.randn(5, 3, *image_size)
    outputs = {"model.pt2": torch.export.load(folder / "model.pt2").module()(images)}
    if all(map(importlib.util.find_spec, ONNX)):
        import onnxruntime  # here, because it need not be installed

        with redirect_stdout(io.StringIO()):                                # because it prints its progress
            made = torch.onnx.export(program, input_names=["images"], output_names=["scores"], verbose=False)
        write_whole(folder / "model.onnx", lambda file: file.write(made.model_proto.SerializeToString()), advice=ADVICE)
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        outputs["model.onnx"] = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    expected = copy.deepcopy(model).eval()(images)                         # the model's own mode stays
    return {name: (output - expected).abs().max().item() for name, output in outputs.items()}


def main() -> None:
    parser = flags.Parser(__doc__, prog="python -m mpvg_minimal.tools.export")
    parser.add_argument("run", type=flags.path, metavar="RUN", help="a run's folder")
    args = parser.parse_args()
    _, model = finished.load(args.run)
    torch.manual_seed(0)
    difference = export(model, getattr(model, "vit", model).patch_embed.image_size, args.run)
    for name, value in difference.items():
        print(f"{args.run / name}: largest difference {value:.2e}")
    if "model.onnx" not in difference:
        print(f"no model.onnx: pip install {' '.join(ONNX)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
