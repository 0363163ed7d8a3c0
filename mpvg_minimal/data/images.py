"""Find the image files of a data set, and read one. What cannot be used is refused by name, never changed in silence.

Hidden files and folders, whose names begin with a dot, and the folders in `PASSED_OVER` are no part of a data set:
editors, file servers and archives put them there.
"""
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from torchvision import datasets

from ..runtime.errors import UserError, reason

# Pillow goes by the content of a file and reads dozens of other formats. For EPS it starts Ghostscript.
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
PASSED_OVER = ("@eaDir", "__MACOSX")                        # made by Synology's file servers and by macOS


def data_folder(data_dir: str | Path) -> Path:
    """The folder that holds a data set. UserError if the name is empty or holds a null byte."""
    if not str(data_dir) or "\0" in str(data_dir):
        raise UserError(f"--data-dir {str(data_dir)!r} is no name of a folder: name the folder that holds the data")
    return Path(data_dir)


@contextmanager
def one_line(problem: str, advice: str) -> Iterator[None]:
    """An exception inside becomes a UserError: `problem`, the reason, the advice."""
    try:
        yield
    except (MemoryError, UserError):                        # no file is to blame, or it is named already
        raise
    except Exception as error:                              # Pillow, XML and pycocotools raise a dozen kinds
        raise UserError(f"{problem} ({reason(error, 500)}): {advice}") from error


def open_file(path: str | Path) -> BinaryIO:
    """The file, to be read. ValueError for a pipe, a socket or a device, because to read them could take for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{Path(path).name} is not a regular file")
    return open(path, "rb")


def open_image(path: str | Path) -> Image.Image:
    """The image with all its pixels, in the mode of its file."""
    with open_file(path) as file:
        image = Image.open(file, formats=FORMATS)
        image.load()
    return image


def read_rgb(path: str | Path, advice: str = "replace or remove it") -> Image.Image:
    """The image in three channels of 8 bits. A UserError names a file that cannot be read, and ends with the advice.

    Pixels of 16 bits, 32 bits or floats in one channel are a UserError too, because Pillow would clip them at 255, so
    that most of a 16-bit image becomes white.
    """
    with one_line(f"{path} cannot be read as an image", advice):
        image = open_image(path)
        if image.mode[0] in "IF":                           # I, I;16, I;16B, ..., F
            raise UserError(f"{path} has pixels of more than 8 bits (Pillow's mode {image.mode}): convert the images "
                            "to 8 bits first, because only you know which values should become black and white")
        return image.convert("RGB")


def is_image(path: str) -> bool:
    """True for the name of an image, False for a hidden file. UserError for any other, perhaps a misspelled image."""
    hidden = Path(path).name.startswith(".")
    if not hidden and not datasets.folder.is_image_file(path):
        raise UserError(f"{path} does not have the name of an image: move it away from the folders of images")
    return not hidden


def is_folder_of_data(name: str) -> bool:
    """False for hidden folders and those in `PASSED_OVER`."""
    return not name.startswith(".") and name not in PASSED_OVER


def images_below(folder: str) -> list[str]:
    """The paths of all images in a folder and its subfolders, in the order of torchvision's ImageFolder.

    FileNotFoundError if it is missing. UserError if a subfolder cannot be read: torchvision would leave that one out.
    """
    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):
            raise error
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): change its permissions, or move it away")

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = filter(is_folder_of_data, folders)     # os.walk goes only into those that are left
        found += [(place, name) for name in names if is_image(os.path.join(place, name))]
    return [os.path.join(place, name) for place, name in sorted(found)]


class ClassFolders(datasets.ImageFolder):
    """torchvision's ImageFolder, but with the files that `images_below` finds."""

    def find_classes(self, directory: Path) -> tuple[list[str], dict[str, int]]:
        folders = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
        classes = sorted(filter(is_folder_of_data, folders))
        if not classes:
            raise FileNotFoundError(f"there is no folder of a class in {directory}")
        return classes, {name: number for number, name in enumerate(classes)}

    @staticmethod
    def make_dataset(directory: str, class_to_idx: dict[str, int], *_: Any, **__: Any) -> list[tuple[str, int]]:
        samples = []
        for name, number in class_to_idx.items():
            images = images_below(os.path.join(directory, name))
            if not images:
                raise FileNotFoundError(f"there is no image of the class {name} in {directory}")
            samples += [(path, number) for path in images]
        return samples
