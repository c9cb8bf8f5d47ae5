"""Compile report.pdf from the texts, figures and results as they are.

LaTeX works in report/build, so that its failure leaves the PDF as it was.

    python report/pdf.py      # or make pdf
"""

import os
import re
import shutil
import subprocess

import macros
from sources import REPORT, ReportError, exit_with, write

BUILD = REPORT / "build"
LATEXMK = ["latexmk", "-norc", "-pdf", "-silent", "-interaction=nonstopmode", "-halt-on-error",
           "-file-line-error", f"-outdir={BUILD.name}", "report.tex"]
PACKAGES = ("latexmk texlive-latex-recommended texlive-latex-extra texlive-fonts-recommended "
            "texlive-bibtex-extra")
COMPLAINT = re.compile(r"^(?:\./)?(\S+:\d+: .*)|^! ?(.*)", re.MULTILINE)


def main() -> None:
    """Write the numbers, compile, and put the new PDF in the place of the old one.

    Raises:
        ReportError: LaTeX is missing or stops.
    """
    macros.main()
    if not (shutil.which("latexmk") and shutil.which("pdflatex")):
        raise ReportError(f"the PDF needs LaTeX; on Debian or Ubuntu: apt-get install {PACKAGES}")
    if BUILD.is_dir():
        shutil.rmtree(BUILD)  # what a killed run has left half-written stops the next one
    BUILD.mkdir()
    with (BUILD / "latexmk.log").open("wb") as output:
        status = subprocess.run(LATEXMK, cwd=REPORT, stdin=subprocess.DEVNULL, stdout=output,
                                stderr=subprocess.STDOUT, check=False,
                                env={**os.environ, "max_print_line": "1000"}).returncode
    if status:
        log = BUILD / "report.log"
        log = log if log.exists() else BUILD / "latexmk.log"
        found = COMPLAINT.search(log.read_text(encoding="utf-8", errors="replace"))
        said = f": {found[1] or found[2]}" if found else ""
        raise ReportError(f"LaTeX stopped{said}; see report/build/{log.name}")
    write(REPORT / "report.pdf", (BUILD / "report.pdf").read_bytes())
    print("done: report/report.pdf")


if __name__ == "__main__":
    exit_with(main)
