r"""What the report is made of: its texts, the figures they include, the numbers they name.

In the texts, \num[2]{nf.val_bits_per_dim} is that number of results/nf.json with two decimals; a
dotted key goes into objects and lists (gan.snapshot_epochs.2), and gan.csv.100.d_loss into the row
of epoch 100 of results/gan.csv. In a macro that is called by \each{study.rows}{\row}, a key may
hold its argument (study.rows.#1.name), which stands for every entry.
"""

import csv
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent / "code"))

import a3  # noqa: F401 - refuses an old Python, so each tool imports this file first

REPORT = Path(__file__).resolve().parent
COMMENT = re.compile(r"(?<!\\)%.*")
OPTIONAL = re.compile(r"\\IfFileExists\{([^{}]*)\}\{\\input\{([^{}]*)\}\}\{\}")
INPUT = re.compile(r"\\input\{([^{}]*)\}")
FIGURE = re.compile(r"\\includegraphics(?:\[[^\]]*\])?\{([^{}]*)\}")
NUM = re.compile(r"\\num(?:\[(\d*)\])?\{([^{}]*)\}")
EACH = re.compile(r"\\each\{([^{}#]*)\}")
NO_NAME = "Student Name"  # in author.tex where nobody has put theirs
AUTHOR = re.compile(r"(name|number|email):\s*(.*)"
                    r"|\\newcommand\{\\student(name|number|email)\}\{([^\\{}~$]*)\}")


class ReportError(Exception):
    """The report cannot be made; the message is one line that says why."""


class Number(NamedTuple):
    """A number that the report names: its full key, with decimals as written, and its result."""

    key: str
    decimals: str
    value: object
    where: str


def exit_with(main: Callable[[], int | None]) -> None:
    """Run ``main`` and exit with its status; an error ends in one line and status 1.

    Asked for help, say what the script is for, and run nothing.
    """
    if {"-h", "--help"} & set(sys.argv[1:]) and "argv" not in signature(main).parameters:
        print(sys.modules[main.__module__].__doc__)
        return
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale may lack our letters
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (ReportError, OSError) as error:
        sys.exit(f"error: {error}")


def read(file: Path) -> str:
    """Return a text, whatever the locale, without the mark that some editors begin it with.

    Raises:
        ReportError: it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ReportError(f"{file.parent.name}/{file.name}, line {line}: this is not UTF-8; "
                          "save the file as UTF-8 in your editor") from None


def write(file: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        ReportError: it cannot be written; what was there is still there.
    """
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.write_bytes(content)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ReportError(f"cannot write '{file}': {error.strerror}") from None


def author(report: Path) -> dict[str, str]:
    r"""Return name, number and email in author.tex: plain text, also where \newcommand holds it.

    Raises:
        ReportError: a line is something else, or one is missing.
    """
    found = {}
    for i, line in enumerate(read(report / "author.tex").splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("%"):
            match = AUTHOR.fullmatch(line.strip())
            key = match and (match[1] or match[3])
            if key is None or key in found:
                raise ReportError(f"report/author.tex, line {i}: expected 'name: ...', 'number: "
                                  "...' or 'email: ...', each once, as plain text without LaTeX, "
                                  f"not {line!r}")
            found[key] = match[2] or match[4] or ""
    for key in ("name", "number", "email"):
        if key not in found:
            raise ReportError(f"report/author.tex has no line '{key}: ...'")
    return found


def texts(report: Path, name: str = "report") -> dict[str, str]:
    r"""Return the .tex files that LaTeX reads, from report.tex on, without their comments.

    As LaTeX does, it skips what \IfFileExists guards if that file is not there.
    """
    file = report / f"{name}.tex"
    text = OPTIONAL.sub(lambda guard: rf"\input{{{guard[2]}}}" if (report / guard[1]).exists()
                        else "", COMMENT.sub("", read(file)))
    found = {file.name: text}
    for part in INPUT.findall(text):
        if part != "numbers":
            found |= texts(report, part)
    return found


def figures(report: Path) -> list[str]:
    """Return the file names of the figures that the report includes."""
    return [name for text in texts(report).values() for name in FIGURE.findall(text)]


def record(file: Path) -> dict:
    """Return what a JSON or CSV file of results holds; a CSV as {"csv": rows}.

    Raises:
        LookupError: it is missing or damaged, or holds a number that is not finite.
    """
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            found = json.loads(text, parse_float=finite, parse_constant=finite)
            if not isinstance(found, dict):
                raise ValueError("it holds no results")
            return found
        return {"csv": [{name: finite(value) for name, value in row.items()}
                        for row in csv.DictReader(text.splitlines())]}
    except FileNotFoundError:
        raise LookupError(f"there is no 'results/{file.name}'") from None
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise LookupError(f"'results/{file.name}' cannot be read "
                          f"({' '.join(str(error).split())}); make it anew") from None


def finite(text: str) -> float:
    """Return the number in a text.

    Raises:
        ValueError: it is not finite, or none.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a number in it is {text}")
    return value


def results(report: Path, key: str) -> dict[str, object]:
    """Return what "<file>.<key>" leads to in the results: one value, or one for each "#1".

    Raises:
        LookupError: it leads nowhere; the message names the file and the key.
    """
    file, *parts = key.split(".")
    kind = "csv" if parts[:1] == ["csv"] else "json"
    try:
        found = {file: record(report / "results" / f"{file}.{kind}")}
    except LookupError as error:
        raise LookupError(f"{error.args[0]}, where '{key}' is from") from None
    try:
        for part in parts:
            if part == "#1":
                found = {f"{path}.{name}": entry for path, value in found.items() for name, entry
                         in (value.items() if isinstance(value, dict) else enumerate(value))}
            else:
                found = {f"{path}.{part}": value[int(part) if isinstance(value, list) else part]
                         for path, value in found.items()}
    except (LookupError, TypeError, ValueError):
        raise LookupError(f"'results/{file}.{kind}' has no '{'.'.join(parts)}'") from None
    return found


def numbers(report: Path) -> list[Number]:
    """Return every number that the report names.

    Raises:
        ReportError: one has no result.
    """
    found = []
    for name, text in texts(report).items():
        for match in NUM.finditer(text):
            where = f"report/{name}, line {text.count(chr(10), 0, match.start()) + 1}"
            try:
                found += [Number(key, match[1] or "", value, where)
                          for key, value in results(report, match[2]).items()]
            except LookupError as error:
                raise ReportError(f"{where}: {error.args[0]}") from None
    return found


def loops(report: Path) -> dict[str, list[str]]:
    r"""Return, for every list that the report goes through with \each, the names of its entries.

    Raises:
        ReportError: there is no such list.
    """
    try:
        return {key: [path.split(".")[-1] for path in results(report, f"{key}.#1")]
                for text in texts(report).values() for key in EACH.findall(text)}
    except LookupError as error:
        raise ReportError(error.args[0]) from None


def fingerprint(report: Path) -> str:
    """Return a hash of author, texts, style, references, numbers and figures: the PDF carries it.

    Raises:
        ReportError: a number or a figure is missing, or who wrote the report.
    """
    made_of = hashlib.sha256(repr(author(report)).encode())
    for number in numbers(report):
        made_of.update(repr((number.key, number.decimals, number.value)).encode())
    for file in [*(report / name for name in texts(report)), *sorted(report.glob("*.sty")),
                 *sorted(report.glob("*.bib")),
                 *(report / "figures" / name for name in figures(report))]:
        if not file.exists():
            raise ReportError(f"there is no 'report/figures/{file.name}', which the text includes")
        made_of.update(file.read_bytes())
    return made_of.hexdigest()
