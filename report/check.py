"""Go through the assignment as a grader does: is every deliverable there, and good enough?

One line for each question: ok or FAIL, and why. Besides, whether report.pdf was made of these
texts, numbers and figures: it carries their fingerprint, so file dates do not matter.

    python report/check.py      # exit status 1 if anything fails; the standard library is enough
"""

import math
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from sources import (
    REPORT,
    ReportError,
    exit_with,
    figures,
    fingerprint,
    read,
    results,
    texts,
)

PARTS = {"1": 15, "2": 7, "3": 8, "4": 1}  # questions in each part of the assignment
GAP_PX, ZOOM = 2, 3  # of the image grids (code/a3/figures.py)
SCRIPTS = {"1.12": "a3_vae_template.py", "2.5": "a3_gan_template.py", "3.7": "a3_nf_template.py"}
THREE_TIMES = ("start", "half", "end")
FIGURES = {
    "1.13": ["demo-elbo.pdf"],
    "1.14": [f"vae-z20-samples-{time}.png" for time in THREE_TIMES],
    "1.15": ["vae-z2-manifold-end.png"],
    "2.5": ["gan-losses.pdf"],
    "2.6": [f"gan-samples-{time}.png" for time in THREE_TIMES],
    "2.7": ["gan-interpolation.png"],
    "3.7": [f"nf-samples-{time}.png" for time in THREE_TIMES],
    "3.8": ["nf-bpd.pdf"],
}
# Images in a row, and rows at least, of the question's figures (1.14: means above samples).
GRIDS = {"1.14": (5, 10), "1.15": (20, 20), "2.6": (5, 5), "2.7": (9, 1)}


def three_times(epochs: list[int]) -> bool:
    """Tell whether the samples are of before, half-way through and after training."""
    return epochs[0] == 0 and 2 * epochs[2] == epochs[4]


# What a result is called, where it is, when it will do.
RESULTS: dict[str, list[tuple[str, str, Callable]]] = {
    "1.12": [("-ELBO {:.2f} nats on validation, at most 105", "vae-z20.val_elbo_nats",
              lambda nats: nats <= 105)],
    "1.13": [("{:.1f} nats untrained, near 784 ln 2 = 543.4", "vae-z20.untrained_elbo_nats",
              lambda nats: abs(nats - 784 * math.log(2)) < 3)],
    "1.14": [("samples of epochs {0[0]}, {0[2]}, {0[4]}", "vae-z20.snapshot_epochs",
              three_times)],
    "1.15": [("{} latent dimensions", "vae-z2.flags.zdim", lambda zdim: zdim == 2)],
    "2.5": [("{} of 10 classes drawn", "gan.classes_found", lambda classes: classes == 10)],
    "2.6": [("samples of epochs {0[0]}, {0[2]}, {0[4]}", "gan.snapshot_epochs", three_times)],
    "2.7": [("from a {0[0]} to a {0[1]}", "gan.interpolation_classes",
             lambda classes: len(set(classes)) == 2)],
    "3.8": [("{:.3f} bits per dimension on validation, below 1.85", "nf.val_bits_per_dim",
             lambda bits: bits < 1.85), ("after {} epochs", "nf.epochs", lambda n: n == 40)],
}


def grid(png: Path) -> tuple[int, int]:
    """Return how many images of 28 x 28 pixels a PNG of a grid has side by side and below."""
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    return tuple((size // ZOOM - GAP_PX) // (28 + GAP_PX) for size in (width, height))


def figure_findings(report: Path, question: str) -> Iterator[tuple[str, bool]]:
    """Yield each finding about a question's figures, and whether it is good."""
    names, included = FIGURES.get(question, []), figures(report)
    for name in names:
        if not (report / "figures" / name).exists():
            yield f"there is no report/figures/{name}", False
            return
        if name not in included:
            yield f"{name} is not in the text", False
    try:
        grids = {grid(report / "figures" / name) for name in names if question in GRIDS}
    except struct.error:
        yield f"of {', '.join(names)}, one is no PNG", False
        return
    for columns, rows in grids:
        least_columns, least_rows = GRIDS[question]
        yield (f"{columns} x {rows} images" + (f", {len(names)} times" if len(names) > 1 else ""),
               columns == least_columns and rows >= least_rows)


def findings(report: Path, question: str) -> Iterator[tuple[str, bool]]:
    """Yield each finding about the answer to a question, and whether it is good."""
    titles = re.findall(rf"\\question{{{re.escape(question)}}}{{([^{{}}]*)}}",
                        "".join(texts(report).values()))
    yield (titles[0], True) if len(titles) == 1 else (f"{len(titles)} headings", False)
    if question in SCRIPTS:
        script = report.parent / "code" / SCRIPTS[question]
        yield f"{'' if script.exists() else 'no '}code/{script.name}", script.exists()
    yield from figure_findings(report, question)
    for text, key, good in RESULTS.get(question, []):
        try:
            (value,) = results(report, key).values()
            yield text.format(value), good(value)
        except LookupError as error:
            yield str(error.args[0]), False
        except (TypeError, ValueError):
            yield f"'{key}' is {value}", False


def text_findings(report: Path) -> Iterator[tuple[str, bool]]:
    """Yield each finding about the text as a whole."""
    for name in texts(report):
        if re.search("TODO", read(report / name)):
            yield f"a TODO is left in {name}", False


def pdf_findings(report: Path) -> Iterator[tuple[str, bool]]:
    """Yield whether the PDF was made of what lies beside it."""
    try:
        made_of = f"/Fingerprint ({fingerprint(report)})".encode()
    except ReportError as error:
        yield str(error), False
        return
    if not (report / "report.pdf").exists():
        yield "report.pdf is missing: run make pdf", False
    elif made_of not in (report / "report.pdf").read_bytes():
        yield "text, numbers or figures have changed since it was made: run make pdf", False
    else:
        yield "made of these texts, numbers and figures", True


def main() -> int:
    """Print the list; return 0 if all is well, else 1."""
    questions = [f"{part}.{i}" for part, count in PARTS.items() for i in range(1, count + 1)]
    rows = {question: list(findings(REPORT, question)) for question in questions}
    rows |= {"text": list(text_findings(REPORT)), "PDF": list(pdf_findings(REPORT))}
    failed = 0
    for name, found in rows.items():
        bad = [text for text, good in found if not good]
        said = "; ".join(bad or [text for text, _ in found]) or "no TODO left"
        print(f"{'FAIL' if bad else 'ok':4}  {name:4}  {said}".rstrip())
        failed += bool(bad)
    print(f"{len(rows) - failed} of {len(rows)} ok")
    return int(failed > 0)


if __name__ == "__main__":
    exit_with(main)
