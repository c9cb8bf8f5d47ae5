r"""Write numbers.tex: every number that the report names, from results/*.json.

In the report, \num[2]{nf.val_bits_per_dim} is that number of results/nf.json with two decimals;
a dotted key goes into objects and lists (gan.snapshot_epochs.2). In a macro that is called by
\each{study.rows}{\row}, a key may hold its argument (study.rows.#1.name): it is written for every
entry that there is. A number without a result stops the build.

    python report/numbers.py      # the standard library is all that it needs
"""

import hashlib
import json
import re
import sys
from pathlib import Path

REPORT = Path(__file__).resolve().parent
NUM = re.compile(r"\\num(?:\[(\d*)\])?\{([^{}]*)\}")
OPTIONAL = re.compile(r"\\IfFileExists\{([^{}]*)\}\{\\input\{([^{}]*)\}\}\{\}")
INPUT = re.compile(r"\\input\{([^{}]*)\}")
FIGURE = re.compile(r"\\includegraphics(?:\[[^\]]*\])?\{([^{}]*)\}")
ESCAPED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
           **{sign: "\\" + sign for sign in "#$%&_{}"}}


class ReportError(Exception):
    """The report cannot be made; the message is one line that says why."""


def texts(report: Path, name: str = "report") -> dict[str, str]:
    r"""Return the .tex files that LaTeX reads, from report.tex on, without their comments.

    As LaTeX does, it skips what \IfFileExists guards if that file is not there.
    """
    file = report / f"{name}.tex"
    text = re.sub(r"(?<!\\)%.*", "", file.read_text())
    text = OPTIONAL.sub(lambda guard: rf"\input{{{guard[2]}}}" if (report / guard[1]).exists()
                        else "", text)
    found = {file.name: text}
    for part in INPUT.findall(text):
        if part != "numbers":
            found |= texts(report, part)
    return found


def figures(report: Path) -> list[str]:
    """Return the names of the figures that the report includes."""
    return [name for text in texts(report).values() for name in FIGURE.findall(text)]


def entries(results: Path, file: str, keys: list[str]) -> list[tuple[list[str], object]]:
    """Return what ``keys`` lead to in a results file, with the keys: once, or for each "#1".

    Raises:
        LookupError, ValueError: they lead nowhere.
    """
    found = [([], json.loads((results / f"{file}.json").read_text()))]
    for key in keys:
        if key == "#1":
            found = [([*path, str(name)], entry) for path, value in found for name, entry in
                     (value.items() if isinstance(value, dict) else enumerate(value))]
        else:
            found = [([*path, key], value[int(key) if isinstance(value, list) else key])
                     for path, value in found]
    return found


def typeset(value: object, decimals: str) -> str:
    """Return a result as TeX, fit for text and for formulas.

    Raises:
        ValueError: a number that is none, or has a fraction and no decimals are asked for.
    """
    if isinstance(value, str):
        return "".join(ESCAPED.get(sign, sign) for sign in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"is no number: {json.dumps(value)}")
    if isinstance(value, float) and not decimals:
        raise ValueError(f"is {value}: say with how many decimals")
    shown = f"{value:,.{int(decimals or 0)}f}"
    if not re.search("[1-9]", shown):
        shown = shown.lstrip("-")
    return shown.replace(",", "{,}").replace("-", r"\ensuremath{-}")


def macros(report: Path) -> dict[str, str]:
    """Return the TeX of every number that the report names, by "<file>.<key>@<decimals>".

    Raises:
        ReportError: a number that has no result.
    """
    found = {}
    for name, text in texts(report).items():
        for number in NUM.finditer(text):
            decimals, (file, *keys) = number[1] or "", number[2].split(".")
            line = text.count("\n", 0, number.start()) + 1
            where = f"report/{name}, line {line}: 'results/{file}.json'"
            try:
                for path, value in entries(report / "results", file, keys):
                    found[".".join([file, *path]) + f"@{decimals}"] = typeset(value, decimals)
            except FileNotFoundError:
                raise ReportError(f"{where} does not exist; '{number[2]}' is from it") from None
            except (LookupError, TypeError, AttributeError):
                raise ReportError(f"{where} has no '{'.'.join(keys)}'") from None
            except ValueError as error:
                raise ReportError(f"{where}: '{'.'.join(keys)}' {error}") from None
    return found


def loops(report: Path) -> dict[str, list[str]]:
    r"""Return the entries of every list that the report goes through with \each, by its key."""
    found = {}
    for text in texts(report).values():
        for key in re.findall(r"\\each\{([^{}#]*)\}", text):
            file, *keys = key.split(".")
            found[key] = [path[-1] for path, _ in
                          entries(report / "results", file, [*keys, "#1"])]
    return found


def fingerprint(report: Path) -> str:
    """Return a hash of all that the PDF is made of: text, style, numbers and figures.

    Raises:
        ReportError: a figure is missing.
    """
    made_of = hashlib.sha256(repr((macros(report), loops(report))).encode())
    for file in [*sorted(report / name for name in texts(report)), *sorted(report.glob("*.sty")),
                 *sorted(report.glob("*.bib")),
                 *sorted(report / "figures" / name for name in figures(report))]:
        if not file.exists():
            raise ReportError(f"'report/figures/{file.name}' is missing; the report includes it")
        made_of.update(file.read_bytes())
    return made_of.hexdigest()


def main() -> int:
    """Write numbers.tex beside the report; return the exit status."""
    try:
        numbers, lists = macros(REPORT), loops(REPORT)
        lines = ["% Written by numbers.py from results/*.json; not to be edited.",
                 rf"\newcommand{{\fingerprint}}{{{fingerprint(REPORT)}}}"]
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    lines += [rf"\expandafter\def\csname num@{key}\endcsname{{{text}}}"
              for key, text in sorted(numbers.items())]
    lines += [rf"\expandafter\def\csname each@{key}\endcsname#1{{"
              + "".join(f"#1{{{name}}}" for name in names) + "}"
              for key, names in sorted(lists.items())]
    (REPORT / "numbers.tex").write_text("\n".join(lines) + "\n")
    print(f"{len(numbers)} numbers: report/numbers.tex")
    return 0


if __name__ == "__main__":
    sys.exit(main())
