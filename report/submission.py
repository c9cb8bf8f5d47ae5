"""Pack the archive to hand in: the PDF, what it is made of, and the code, in their folders.

    python report/submission.py wen      # wen_assignment3.zip; or make submission LASTNAME=wen

No name, no PDF: no archive.
"""

import io
import os
import sys
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

from sources import NO_NAME, REPORT, ReportError, author, exit_with, write

REPOSITORY = REPORT.parent
PDF = "report/report.pdf"
PACKED = ("code", "report", "README.md", "requirements.txt", "Makefile", ".gitignore")
# Files and folders that stay out wherever they are: hidden, data, trained, made anew by a command.
LEFT_OUT = (".*", "data", "checkpoints", "demo", "study", "*-partial-*", "*-partial.csv", "*.zip",
            "*.gz", "*.npz", "*.pt", "*.pth", "venv", "env", "__pycache__", "*.pyc", "*.tmp",
            "build", "*.aux", "*.bbl", "*.blg", "*.fdb_latexmk", "*.fls", "*.log", "*.out",
            "*.synctex*", "numbers.tex")
JUDGES = f"weights/*-{8 * '[0-9a-f]'}.pt"  # but these are read, and cannot be made again alike
LONGEST = 50  # letters of a name; file systems allow 255 bytes with all that is added


def files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder that belong to a submission."""
    for path in sorted(folder.iterdir()):
        if path.match(JUDGES) or not any(path.match(pattern) for pattern in LEFT_OUT):
            if path.is_dir() and not path.is_symlink():
                yield from files(path)
            elif path.is_file():
                yield path


def archive_name(lastname: str) -> str:
    """Return the file name of the archive.

    Raises:
        ReportError: it is not a last name.
    """
    # A locale without our letters hands them over as single bytes.
    name = lastname.encode(errors="surrogateescape").decode(errors="replace").strip()
    kinds = {unicodedata.category(sign)[0] for sign in name if sign not in "-' \u2019"}
    if not {"L"} <= kinds <= {"L", "M"} or name.startswith("-") or len(name) > LONGEST:
        raise ReportError(f"{name!r} is not a last name of at most {LONGEST} letters, hyphens and "
                          "apostrophes: make submission LASTNAME=wen")
    return f"{'_'.join(name.split())}_assignment3.zip"


def pack(archive: Path) -> list[str]:
    """Write the archive; return what is in it.

    Raises:
        ReportError: there is no PDF, or the archive cannot be written.
    """
    if not (REPOSITORY / PDF).is_file():
        raise ReportError(f"there is no '{PDF}'; make pdf writes it")
    paths = [path for name in PACKED for path in (
        files(REPOSITORY / name) if (REPOSITORY / name).is_dir() else [REPOSITORY / name])]
    names = []
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as packed:
        for path in filter(Path.is_file, paths):
            name = path.relative_to(REPOSITORY).as_posix()
            names.append(name.encode(errors="surrogateescape").decode(errors="replace"))
            packed.write(path, names[-1])
    write(archive, content.getvalue())
    return names


def main() -> None:
    """Pack, and list what was packed."""
    lastname = " ".join(sys.argv[1:]) or os.environ.get("LASTNAME", "")
    if not lastname:
        raise ReportError("whose submission? make submission LASTNAME=wen")
    name = archive_name(lastname)
    no_author = author(REPORT)["name"] == NO_NAME
    names = pack(REPOSITORY / os.fsdecode(name.encode()))
    print("\n".join(f"  {packed}" for packed in names))
    print(f"{name}: {len(names)} files")
    if no_author:
        print("note: the report bears no name; make pdf NAME='...' NUMBER=... EMAIL=...")


if __name__ == "__main__":
    exit_with(main)
