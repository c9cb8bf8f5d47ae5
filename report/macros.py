r"""Write numbers.tex: a macro for each number that the report names, and for who wrote it.

A number without a result stops the build, with one line that says which and where.

    python report/macros.py       # needs nothing but the standard library
"""

import json
import math
import os
import re
import unicodedata

from sources import (
    NO_NAME,
    REPORT,
    ReportError,
    author,
    exit_with,
    fingerprint,
    loops,
    numbers,
    read,
    write,
)

ESCAPED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
           "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
           **{sign: "\\" + sign for sign in "#$%&_{}"}}
LIGATURE = re.compile(r"(?<=[-<>,!?])(?=[-<>,])")  # of the T1 fonts: "--" is not one dash
KNOWN = "‘’“”‚„–—«»·¡¿ßẞæÆœŒøØłŁđĐðÐþÞıŋŊ"  # noqa: RUF001 - to LaTeX, beside ASCII
# The commands for Unicode's marks above a letter, and for those beside or below.
ABOVE = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u",
         "\u0307": ".", "\u0308": '"', "\u0309": "hookabove", "\u030a": "r", "\u030b": "H",
         "\u030c": "v"}
BELOW = {"\u031b": "horn", "\u0323": "d", "\u0326": "textcommabelow", "\u0327": "c",
         "\u0328": "k", "\u0331": "b"}
LETTER = re.compile(f"(.)([{''.join([*ABOVE, *BELOW])}]*)", re.DOTALL)


def letter(match: re.Match) -> str:
    """Return a letter with its marks, or a sign, as TeX.

    Raises:
        ReportError: the PDF's fonts lack it.
    """
    base, marks = match.groups()
    if not (" " <= base <= "~" or base in KNOWN):
        name = unicodedata.name(base, "not a letter")
        raise ReportError(f"holds {base!r} ({name}), which the PDF's fonts lack; write it in "
                          "Latin letters")
    above = [ABOVE[mark] for mark in marks if mark in ABOVE]
    text = f"\\{base}{{}}" if above and base in "ij" else ESCAPED.get(base, base)  # no dot
    for command in [*above, *(BELOW[mark] for mark in marks if mark in BELOW)]:
        text = f"\\{command}{{{text}}}"
    return text


def typeset(value: object, decimals: str) -> str:
    """Return a result as TeX that is right in text and in formulas.

    Raises:
        ReportError: it is neither number nor text, a fraction without a number of decimals, or
            text in letters that the PDF's fonts lack.
    """
    if isinstance(value, str):
        parts = unicodedata.normalize("NFD", LIGATURE.sub("\0", value)).split("\0")
        return "{}".join(LETTER.sub(letter, part) for part in parts)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReportError(f"is not a number: {json.dumps(value)}")
    if not math.isfinite(value):
        raise ReportError(f"is {value}, and results are finite")
    if isinstance(value, float) and not decimals:
        raise ReportError(f"is {value}: with how many decimals?")
    shown = f"{value:,.{decimals or 0}f}"
    if not re.search("[1-9]", shown):
        shown = shown.lstrip("-")
    return shown.replace(",", "{,}").replace("-", r"\ensuremath{-}")


def keep_author() -> None:
    """Write A3_NAME, A3_NUMBER and A3_EMAIL, where make has set them, into author.tex.

    They stay there, so that check.py and submission.py find the author that the PDF names.

    Raises:
        ReportError: one is not a line of text that can be typeset; author.tex stays as it was.
    """
    given = {}
    for key in ("name", "number", "email"):
        # A locale without our letters hands them over as single bytes.
        value = os.fsencode(os.environ.get(f"A3_{key.upper()}", "")).decode(errors="replace")
        if value.strip():
            try:
                typeset(value, "")
            except ReportError as error:
                raise ReportError(f"{key.upper()} {error}") from None
            given[key] = value.strip()
    if given:
        file = REPORT / "author.tex"
        notes = [line for line in read(file).splitlines() if line.startswith("%")]
        lines = [f"{key}: {value}" for key, value in {**author(REPORT), **given}.items()]
        write(file, "\n".join([*notes, *lines, ""]).encode())


def main() -> None:
    """Write numbers.tex beside the report."""
    keep_author()
    macros = {"nameless": rf"\endcsname{{{int(author(REPORT)['name'] == NO_NAME)}}}"}
    named = [(f"num@{number.key}@{number.decimals}", *number) for number in numbers(REPORT)]
    named += [(f"student{key}", key, "", text, "report/author.tex")
              for key, text in author(REPORT).items()]
    for name, key, decimals, value, where in named:
        try:
            macros[name] = rf"\endcsname{{{typeset(value, decimals)}}}"
        except ReportError as error:
            raise ReportError(f"{where}: '{key}' {error}") from None
    for key, names in loops(REPORT).items():
        calls = "".join(f"#1{{{name}}}" for name in names)
        macros[f"each@{key}"] = rf"\endcsname#1{{{calls}}}"
    lines = ["% Written by macros.py from results/ and author.tex; do not edit.",
             rf"\newcommand{{\fingerprint}}{{{fingerprint(REPORT)}}}",
             *(rf"\expandafter\def\csname {name}{rest}" for name, rest in sorted(macros.items()))]
    write(REPORT / "numbers.tex", ("\n".join(lines) + "\n").encode())
    print(f"{len(macros)} macros for numbers and author: report/numbers.tex")


if __name__ == "__main__":
    exit_with(main)
