"""Pack the archive to hand in: the PDF and the code that git tracks, in their folders.

    python report/submission.py wen      # wen_assignment3.zip

No name, no PDF: no archive.
"""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PDF = "report/report.pdf"
PACKED = ["code", "*.py", "requirements.txt", "README.md", "Makefile"]  # what git tracks of these


def pack(lastname: str) -> list[str]:
    """Write <lastname>_assignment3.zip at the top of the repository; return what is in it.

    Raises:
        SystemExit: with one line, if the name is not one, or PDF or git is missing.
    """
    if not re.fullmatch(r"[^\W\d_]+([-'][^\W\d_]+)*", lastname):
        sys.exit(f"error: '{lastname}' is not a last name; make submission LASTNAME=wen")
    if not (REPOSITORY / PDF).exists():
        sys.exit(f"error: there is no '{PDF}'; make pdf writes it")
    listing = subprocess.run(["git", "ls-files", "-z", "--", *PACKED], cwd=REPOSITORY,
                             capture_output=True, text=True, check=False)
    names = [name for name in listing.stdout.split("\0") if name]
    if not names:
        sys.exit(f"error: '{REPOSITORY}' is not a git repository; git knows which code to pack")
    names = sorted({PDF, *(name for name in names if (REPOSITORY / name).exists())})
    with zipfile.ZipFile(REPOSITORY / f"{lastname}_assignment3.zip", "w",
                         zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(REPOSITORY / name, name)
    return names


def main() -> None:
    """Pack, and list what was packed."""
    if len(sys.argv) != 2:
        sys.exit("error: whose submission? make submission LASTNAME=wen")
    lastname = sys.argv[1]
    names = pack(lastname)
    print("\n".join(f"  {name}" for name in names))
    print(f"{lastname}_assignment3.zip: {len(names)} files")
    if "Student Name" in (REPOSITORY / "report/author.tex").read_text():
        print("note: report/author.tex still holds no name; write yours there, then make pdf")


if __name__ == "__main__":
    main()
