r"""Write numbers.tex: one macro for each number that the report names, from results/.

A number without a result stops the build, with one line that says which and where.

    python report/macros.py       # needs nothing but the standard library
"""

import json
import math
import re
import sys

from sources import REPORT, ReportError, fingerprint, loops, numbers

ESCAPED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
           **{sign: "\\" + sign for sign in "#$%&_{}"}}


def typeset(value: object, decimals: str) -> str:
    """Return a result as TeX that is right in text and in formulas.

    Raises:
        ReportError: it is neither number nor text, or a fraction without a number of decimals.
    """
    if isinstance(value, str):
        return "".join(ESCAPED.get(sign, sign) for sign in value)
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


def main() -> int:
    """Write numbers.tex beside the report; return the exit status."""
    macros = {}
    try:
        for number in numbers(REPORT):
            try:
                text = typeset(number.value, number.decimals)
            except ReportError as error:
                raise ReportError(f"{number.where}: '{number.key}' {error}") from None
            macros[f"num@{number.key}@{number.decimals}"] = rf"\endcsname{{{text}}}"
        for key, names in loops(REPORT).items():
            calls = "".join(f"#1{{{name}}}" for name in names)
            macros[f"each@{key}"] = rf"\endcsname#1{{{calls}}}"
        made_of = fingerprint(REPORT)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    lines = ["% Written by macros.py from results/; do not edit.",
             rf"\newcommand{{\fingerprint}}{{{made_of}}}",
             *(rf"\expandafter\def\csname {name}{rest}" for name, rest in sorted(macros.items()))]
    (REPORT / "numbers.tex").write_text("\n".join(lines) + "\n")
    print(f"{len(macros)} numbers of the results: report/numbers.tex")
    return 0


if __name__ == "__main__":
    sys.exit(main())
