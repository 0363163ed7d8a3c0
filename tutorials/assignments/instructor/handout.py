"""The archive for students: `python tutorials/assignments/instructor/handout.py assignments.zip`

It holds the assignments and the grader in the same folders as here, so the same commands work, and nothing else of the
repository: no instructor's folder, and no mpvg_minimal, whose modules are the answers. The tests need only torch.
"""
import argparse
import zipfile
from pathlib import Path

from check import ASSIGNMENTS, assignments, named_file, written

ROOT = ASSIGNMENTS.parents[1]


def files() -> list[Path]:
    """By name, so that nothing else that lies about is handed out."""
    common = [ROOT / "LICENSE", *(ASSIGNMENTS / name for name in ("README.md", "conftest.py", "expect.py", "student.py",
                                                               "grade.py"))]
    return common + [ASSIGNMENTS / assignment / name for assignment in assignments()
                     for name in ("README.md", named_file(assignment), f"test_{named_file(assignment)}")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, metavar="FILE.zip")
    archive = parser.parse_args().archive
    if archive.suffix != ".zip" or not archive.resolve().parent.is_dir():
        parser.error(f"{archive}: expected a name that ends in .zip, in a folder that exists")
    for assignment in assignments():
        for problem in written(assignment):
            parser.error(f"{assignment} would hand out an answer: {problem}; put the stub back first")
    requirements = (ROOT / "requirements.txt").read_text().splitlines()
    needed = [line for line in requirements if line.startswith(("torch>", "pytest>"))]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("requirements.txt", "\n".join(needed) + "\n")
        out.writestr("pytest.ini", "[pytest]\n")            # so that pytest finds conftest.py from every folder
        for path in files():
            out.write(path, path.relative_to(ROOT))
    print(f"{archive}: {len(files()) + 2} files, no solution among them")


if __name__ == "__main__":
    main()
