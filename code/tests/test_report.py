"""The report: its numbers, figures and headings, the grader's list, the archive to hand in."""

import copy as copies
import csv
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import a3_gan_template as gan
import a3_vae_template as vae
from a3 import figures
from a3.runs import RunError, method_flags
from report_modules import REPORT, REPOSITORY, module

sources, macros, check, missing = (
    module(name) for name in ("sources", "macros", "check", "missing"))
QUESTIONS = [*(f"1.{i}" for i in range(1, 16)), *(f"2.{i}" for i in range(1, 8)),
             *(f"3.{i}" for i in range(1, 9)), "4.1"]  # the assignment's


@pytest.fixture
def copy(tmp_path) -> Path:
    """Return the repository's report and code in a folder of their own."""
    ignore = shutil.ignore_patterns("__pycache__", "build")
    for folder in ("report", "code"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=ignore)
    for file in ("Makefile", "README.md", "requirements.txt"):
        shutil.copy(REPOSITORY / file, tmp_path)
    for left in (tmp_path / "report").glob("*.log"):
        left.unlink()
    (tmp_path / "report/numbers.tex").unlink(missing_ok=True)
    return tmp_path


def run(copy: Path, script: str, *argv: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, f"report/{script}.py", *argv], cwd=copy,
                          capture_output=True, text=True, check=False,
                          env={**os.environ, **variables})


def written(copy: Path) -> dict[str, str]:
    r"""Return the macros of numbers.tex: "num@<key>@<decimals>" and what it stands for."""
    lines = (copy / "report/numbers.tex").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"\\expandafter\\def\\csname (.*?)\\endcsname(#1)?\{(.*)\}", line)
             for line in lines[2:]]
    return {match[1]: match[3] for match in found}


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text(encoding="utf-8") + text, encoding="utf-8")


def change_result(copy: Path, file: str, **changes) -> None:
    path = copy / "report/results" / f"{file}.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**record, **changes}), encoding="utf-8")


def test_every_number_is_written_as_its_results_file_has_it(copy):
    assert run(copy, "macros").returncode == 0
    shown_by = written(copy)
    used = re.findall(r"\\num(?:\[(\d)\])?\{([^#}]*)\}",
                      "".join(sources.texts(REPORT).values()))
    assert len(used) > 150
    for decimals, name in used:
        file, *keys = name.split(".")
        if keys[0] == "csv":
            with (REPORT / "results" / f"{file}.csv").open() as table:
                value = float(list(csv.DictReader(table))[int(keys[1])][keys[2]])
        else:
            value = json.loads((REPORT / "results" / f"{file}.json").read_text(encoding="utf-8"))
            for key in keys:
                value = value[int(key)] if isinstance(value, list) else value[key]
        shown = shown_by[f"num@{name}@{decimals}"].replace("{,}", ",")
        if not isinstance(value, str):
            shown = shown.replace(r"\ensuremath{-}", "-")
            value = f"{value:,.{int(decimals or 0)}f}"
        assert shown == value, (name, shown, value)


def test_a_number_without_a_result_stops_the_build_with_its_place(copy):
    gan = copy / "report/gan.tex"
    line = gan.read_text(encoding="utf-8").count("\n") + 2
    append(gan, "%\\num{gan.in_a_comment}\n\\num[1]{gan.no_such.key}\n")
    failed = run(copy, "macros")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == (f"error: report/gan.tex, line {line}: 'results/gan.json' has no "
                             "'no_such.key'\n")
    assert not (copy / "report/numbers.tex").exists()


def test_a_missing_results_file_is_named(copy):
    (copy / "report/results/nf.json").unlink()
    assert "there is no 'results/nf.json'" in run(copy, "macros").stderr


BAD = {"empty": b"", "page": b"<html>404</html>", "binary": bytes(range(256)),
       "cut": (REPORT / "results/nf.json").read_bytes()[:700], "list": b"[1]",
       "nan": re.sub(rb'("\w*test_bits_per_dim": )[\d.]+', rb"\1NaN",
                     (REPORT / "results/nf.json").read_bytes()),
       "huge": re.sub(rb'("\w*test_bits_per_dim": )[\d.]+', rb"\g<1>1e999",
                      (REPORT / "results/nf.json").read_bytes())}


def test_damaged_results_stop_every_tool_in_one_line(copy):
    """Whatever is in the place of results: macros and readme write nothing, check says FAIL."""
    readme = (copy / "README.md").read_bytes()
    for kind, content in BAD.items():
        (copy / "report/results/nf.json").write_bytes(content)
        for script in ("macros", "readme"):
            failed = run(copy, script)
            assert (failed.returncode, failed.stdout) == (1, ""), (kind, script, failed)
            assert re.fullmatch("error: .*nf.*\n", failed.stderr), (kind, failed.stderr)
            assert not (copy / "report/numbers.tex").exists()
            assert (copy / "README.md").read_bytes() == readme
        failed = run(copy, "check")
        assert (failed.returncode, failed.stderr) == (1, ""), (kind, failed)
        assert re.search("^FAIL  PDF ", failed.stdout, re.MULTILINE), failed.stdout


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"<html>"])
def test_what_is_no_png_fails_in_the_list(copy, content):
    (copy / "report/figures/gan-samples-end.png").write_bytes(content)
    failed = run(copy, "check")
    assert (failed.returncode, failed.stderr) == (1, ""), failed
    assert re.search("^FAIL  2.6 .*gan-samples-end.png, one is no PNG", failed.stdout,
                     re.MULTILINE), failed.stdout


def test_a_damaged_table_stops_the_build(copy):
    for content in (b"", b"\xff\xfe", b"epoch,d_loss\n0", b"epoch,d_loss\n0,x\n1,2\n"):
        (copy / "report/results/gan.csv").write_bytes(content)
        append(copy / "report/gan.tex", "\\num[1]{gan.csv.0.d_loss}\n")
        failed = run(copy, "macros")
        assert failed.returncode == 1, content
        assert re.fullmatch("error: .*results/gan.csv.*\n", failed.stderr), failed.stderr


def test_a_fraction_without_decimals_stops_the_build(copy):
    append(copy / "report/gan.tex", "\\num{gan.d_loss}\n")
    assert "'gan.d_loss' is 1." in run(copy, "macros").stderr


@pytest.mark.parametrize(("value", "decimals", "tex"), [
    (1234567, "", "1{,}234{,}567"), (1234.567, "1", "1{,}234.6"), (0.12345, "3", "0.123"),
    (-1.5, "2", r"\ensuremath{-}1.50"), (-0.001, "1", "0.0"), (40, "1", "40.0"),
    ("50%_of #1 & ~", "", r"50\%\_of \#1 \& \textasciitilde{}")])
def test_numbers_are_typeset_for_text_and_formulas(value, decimals, tex):
    assert macros.typeset(value, decimals) == tex


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(sources.ReportError, match="and results are finite"):
        macros.typeset(value, "1")


@pytest.mark.parametrize("value", [None, True, [1, 2]])
def test_what_is_not_a_number_is_refused(value):
    with pytest.raises(sources.ReportError, match="is not a number"):
        macros.typeset(value, "1")


# Who wrote it ------------------------------------------------------------------------------------

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NAMED = "name: {}\nnumber: 1\nemail: a_b@c.nl\n"


@pytest.mark.parametrize(("name", "tex"), [
    ("O'Brien", r"O\textquotesingle{}Brien"), ("a--b", "a-{}-b"),
    ("Łukasz Żółć", r"Łukasz \.{Z}\'{o}ł\'{c}"),
    ("Nguyễn Văn Đức", r"Nguy\~{\^{e}}n V\u{a}n Đ\horn{\'{u}}c"), ("Ørsted", "Ørsted"),
    (r"50%_#&~^\{}$", r"50\%\_\#\&\textasciitilde{}\textasciicircum{}"
                      r"\textbackslash{}\{\}\$"), ("Şı̇ñ", None)])
def test_names_are_typeset_as_they_stand(copy, name, tex):
    """Whatever the locale, with the ends of lines and the mark that some editors write."""
    text = "\ufeff" + NAMED.format(name).replace("\n", "\r\n")
    (copy / "report/author.tex").write_bytes(text.encode())
    made = run(copy, "macros", **ASCII)
    assert made.returncode == 0, made.stderr
    found = written(copy)
    assert tex is None or found["studentname"] == tex, (found["studentname"], tex)
    assert found["studentemail"] == r"a\_b@c.nl"


@pytest.mark.parametrize(("content", "told"), [
    (NAMED.format("王小明").encode(), "'name' holds .*Latin letters"),
    (NAMED.format("Émile").encode("latin-1"), "author.tex, line 1: this is not UTF-8"),
    (NAMED.format("Émile").encode("utf-16"), "author.tex, line 1: this is not UTF-8"),
    (b"", "author.tex has no line 'name: ...'"),
    (b"name: A\nname: B\n", "author.tex, line 2: expected"),
    (b"\\newcommand{\\studentname}{\\'Emile}\n", "author.tex, line 1: expected"),
    (None, "author.tex")])
def test_what_cannot_be_typeset_is_told_in_one_line(copy, content, told):
    file = copy / "report/author.tex"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    failed = run(copy, "macros", **ASCII)
    assert failed.returncode == 1
    assert re.fullmatch(f"error: .*{told}.*\n", failed.stderr), failed.stderr
    assert not (copy / "report/numbers.tex").exists()


def make_without_latex(copy: Path, *argv: str, **variables: str) -> str:
    """Return what make says where there is no LaTeX: numbers.tex is written all the same."""
    tools = copy / "bin"
    tools.mkdir(exist_ok=True)
    if not (tools / "python3").exists():
        (tools / "python3").symlink_to(sys.executable)
    return subprocess.run([shutil.which("make"), "pdf", *argv], cwd=copy, capture_output=True,
                          text=True, check=False, env={"PATH": str(tools), **variables}).stderr


@pytest.mark.parametrize("name", [
    "Ada Wen", "O'Brien", 'A "B" C', "Łukasz Żółć", "#1 % & _ ^ ~", r"\x {y}", "$x", "$(touch f)",
    "$(shell touch f)", "$$(touch f)", "`touch f`", "a; touch f", "x' ; touch f '", "% Wen"])
@pytest.mark.parametrize("locale", [{}, ASCII])
def test_make_takes_a_name_as_it_is_and_keeps_it(copy, name, locale):
    (copy / "report/author.tex").write_text("% a note\n" + NAMED.format("A"), encoding="utf-8")
    said = make_without_latex(copy, f"NAME={name}", **locale)
    assert "apt-get install latexmk" in said, said
    assert not (copy / "f").exists() and not (copy / "report/f").exists()
    assert sources.author(copy / "report") == {"name": name, "number": "1", "email": "a_b@c.nl"}
    assert sources.read(copy / "report/author.tex").startswith("% a note\n")
    assert written(copy)["studentname"] == macros.typeset(name, "")
    make_without_latex(copy, "NUMBER=2", "EMAIL=d@e.nl")
    assert sources.author(copy / "report") == {"name": name, "number": "2", "email": "d@e.nl"}


@pytest.mark.parametrize(("name", "told"), [
    ("王小明", "error: NAME holds '王' .*Latin letters"), ("a\nb", "error: NAME holds .*"),
    ("a\u202eb", "error: NAME holds .*")])
def test_a_name_that_cannot_be_typeset_changes_nothing(copy, name, told):
    before = (copy / "report/author.tex").read_bytes()
    said = make_without_latex(copy, f"NAME={name}")
    assert re.match(told, said), said
    assert (copy / "report/author.tex").read_bytes() == before


def test_a_shells_own_variables_name_no_author(copy):
    """Some shells set NAME to the machine's and EMAIL to its user's."""
    before = (copy / "report/author.tex").read_bytes()
    for argv in ((), ("NAME=", "EMAIL= ")):
        make_without_latex(copy, *argv, NAME="laptop", EMAIL="root@laptop")
        assert (copy / "report/author.tex").read_bytes() == before


@pytest.mark.parametrize(("name", "flag"), [(sources.NO_NAME, "1"), ("Ada Wen", "0")])
def test_a_report_without_a_name_says_how_to_set_it(copy, name, flag):
    (copy / "report/author.tex").write_text(NAMED.format(name), encoding="utf-8")
    assert run(copy, "macros").returncode == 0
    assert written(copy)["nameless"] == flag
    assert r"\ifnum\nameless=1" in (REPORT / "report.tex").read_text(encoding="utf-8")


def test_a_damaged_result_is_told_in_one_line(copy):
    (copy / "report/results/nf.json").write_text("{", encoding="utf-8")
    for script in ("macros", "check"):
        failed = run(copy, script)
        assert failed.returncode == 1
        told = failed.stdout + failed.stderr  # in the list of what is there, or alone
        assert re.search(r"nf\.json' cannot be read", told) and "Traceback" not in told, told


@pytest.mark.skipif(not hasattr(os, "geteuid") or not shutil.which("setpriv"),
                    reason="needs setpriv")
def test_a_report_that_cannot_be_written_is_told_in_one_line(copy):
    """Root may write anywhere, so another user tries."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    for folder in (copy, *copy.parents[:-2]):  # pytest makes them for its user alone
        folder.chmod(0o755)
    failed = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/env", "python3",
         "report/macros.py"], cwd=copy, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert re.fullmatch("error: cannot write '.*numbers.tex': .*\n", failed.stderr), failed.stderr


@pytest.mark.parametrize("rows", [16, 18])
def test_the_study_has_a_row_for_every_case(copy, rows):
    keys = re.findall(r"#1\.(\w+)", (REPORT / "study-table.tex").read_text(encoding="utf-8"))
    results = [{"nll_samples": 7, "precision": "float32", **dict.fromkeys(keys, i),
                "name": f"case {i}"} for i in range(rows)]
    (copy / "report/results/study.json").write_text(
        json.dumps({"rows": results, "epochs": 40}), encoding="utf-8")
    assert run(copy, "macros").returncode == 0
    found = written(copy)
    assert found["each@study.rows"] == "".join(f"#1{{{i}}}" for i in range(rows))
    assert [found[f"num@study.rows.{i}.name@"] for i in range(rows)] == [
        f"case {i}" for i in range(rows)]


def test_optional_parts_are_skipped_as_latex_skips_them(copy):
    (copy / "report/results/study.json").unlink(missing_ok=True)
    assert "study-table.tex" not in sources.texts(copy / "report")
    assert run(copy, "macros").returncode == 0


def test_every_figure_is_there():
    included = sources.figures(REPORT)
    assert len(included) > 20
    for name in included:
        assert (REPORT / "figures" / name).stat().st_size > 300, name


def test_every_citation_has_its_reference():
    text = "".join(sources.texts(REPORT).values())
    cited = {key for keys in re.findall(r"\\cite[pt]?\{([^{}]*)\}", text)
             for key in keys.split(",")}
    references = (REPORT / "references.bib").read_text(encoding="utf-8")
    assert cited <= set(re.findall(r"@\w+\{(\w+),", references))


def test_every_question_has_its_heading_in_order():
    text = "".join(sources.texts(REPORT)[f"{part}.tex"]
                   for part in ("vae", "gan", "nf", "comparison"))
    assert re.findall(r"\\question\{([\d.]+)\}", text) == QUESTIONS


def test_the_list_passes_as_committed():
    passed = run(REPOSITORY, "check")
    assert passed.returncode == 0, "make pdf?\n" + passed.stdout
    rows = [line.split()[:2] for line in passed.stdout.splitlines()[:-1]]
    assert rows == [["ok", name] for name in (*QUESTIONS, "text", "PDF")], passed.stdout


def remove_figure(copy: Path) -> None:
    (copy / "report/figures/gan-samples-half.png").unlink()


def too_many_bits(copy: Path) -> None:
    change_result(copy, "nf", val_bits_per_dim=1.86)


def one_class(copy: Path) -> None:
    change_result(copy, "gan", interpolation_classes=[2, 2])


def no_number(copy: Path) -> None:
    change_result(copy, "vae-z20", untrained_elbo_nats=None)


def wrong_grid(copy: Path) -> None:
    folder = copy / "report/figures"
    shutil.copy(folder / "gan-samples-end.png", folder / "gan-interpolation.png")


def no_heading(copy: Path) -> None:
    file = copy / "report/nf.tex"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(r"\question{3.2}", r"\question{3.22}"), encoding="utf-8")


def left_to_do(copy: Path) -> None:
    append(copy / "report/vae.tex", "%TODO\n")


def no_pdf(copy: Path) -> None:
    (copy / "report/report.pdf").unlink()


@pytest.mark.parametrize(("damage", "rows"), [
    (remove_figure, ["2.6", "PDF"]), (too_many_bits, ["3.8", "PDF"]), (one_class, ["2.7", "PDF"]),
    (no_number, ["1.13", "PDF"]), (wrong_grid, ["2.7", "PDF"]), (no_heading, ["3.2", "PDF"]),
    (left_to_do, ["text", "PDF"]), (no_pdf, ["PDF"])])
def test_the_list_fails_on_what_is_missing(copy, damage, rows):
    damage(copy)
    failed = run(copy, "check")
    assert failed.returncode == 1, failed.stdout
    assert re.findall(r"^FAIL +(\S+)", failed.stdout, re.MULTILINE) == rows, failed.stdout


@pytest.mark.parametrize(("images", "columns", "expected"), [
    (25, 5, (5, 5)), (18, 9, (9, 2)), (400, 20, (20, 20))])
def test_the_list_counts_images_as_they_are_drawn(images, columns, expected, tmp_path):
    assert (check.GAP_PX, check.ZOOM) == (figures.GAP_PX, figures.ZOOM)
    figures.save_png(figures.tile(torch.rand(images, 784), columns), tmp_path / "grid.png")
    counted = check.grid(tmp_path / "grid.png")
    assert counted == expected, (counted, expected)


# Runs that are missing, the archive --------------------------------------------------------------

def test_the_report_runs_what_is_missing_and_nothing_else(copy):
    """In the place of the scripts stand some that write down how they were called."""
    for script in (copy / "code").glob("*.py"):
        script.write_text(f"import sys\nprint({script.name!r}, *sys.argv[1:])\n"
                          f"sys.exit({int(script.stem == 'study')})\n")
    nothing = run(copy, "missing")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "")
    for name in ("benchmark", "nf", "study", "vae-z20-seed1"):
        (copy / f"report/results/{name}.json").unlink()
    some = run(copy, "missing")
    assert some.returncode == 1, "as the study's"
    told = some.stdout.splitlines()
    assert told[0] == "report/results lacks vae-z20-seed1, nf, study, benchmark: 110 min"
    assert [line for line in told if not line.startswith("python")][1:] == [
        "a3_vae_template.py --seed 1 --resume", "a3_nf_template.py --resume", "study.py"]


@pytest.mark.parametrize("name", [
    name for name, (command, _) in missing.RUNS.items()
    if command.split()[0].endswith(missing.RESUMED)])
def test_results_are_of_the_flags_that_their_script_has(name):
    """A default that has changed since, or a new flag, asks for a new run."""
    script, *argv = missing.RUNS[name][0].split()
    parsed = importlib.import_module(Path(script).stem).parse_args(argv)
    record = json.loads((REPORT / "results" / f"{name}.json").read_text())
    assert json.loads(json.dumps(method_flags(parsed), default=str)) == record["flags"]
    assert re.fullmatch(r"[0-9a-f]{40}", record["commit"]) and record["evaluated"]["commit"]


def test_every_result_that_the_report_names_can_be_made():
    named = {number.key.split(".")[0] for number in sources.numbers(REPORT)}
    assert named <= set(missing.RUNS), named - set(missing.RUNS)
    readme = (REPOSITORY / "README.md").read_text()
    for command, minutes in missing.RUNS.values():
        if said := re.search(rf"python {re.escape(command)} +# .*?(\d+) min", readme):
            assert int(said[1]) == minutes, (command, said[0])


def test_the_name_of_a_submission_is_never_run(copy):
    for name in ("x; touch f", "$(touch f)", "`touch f`", "$$(shell touch f)", "x' ; touch f '"):
        refused = subprocess.run(["make", "submission", f"LASTNAME={name}"], cwd=copy,
                                 capture_output=True, text=True, check=False)
        assert "is not a last name" in refused.stderr, (name, refused)
        assert not (copy / "f").exists() and not list(copy.glob("*.zip"))
    no_pdf(copy)
    for name in ("O'Brien", "Müller-Meier"):
        told = subprocess.run(["make", "submission", f"LASTNAME={name}"], cwd=copy,
                              capture_output=True, text=True, check=False).stderr
        assert "there is no 'report/report.pdf'" in told, told


def test_help_says_what_a_script_is_for_and_runs_nothing(copy):
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in copy.rglob("*")
                if path.is_file() and "__pycache__" not in path.parts}

    (copy / "report/results/nf.json").unlink()  # missing.py would run what writes it
    before = files()
    for script in ("check", "macros", "missing", "pdf", "readme", "submission"):
        told = run(copy, script, "--help")
        assert (told.returncode, told.stderr) == (0, "")
        assert f"report/{script}.py" in told.stdout
    assert files() == before


@pytest.mark.parametrize("argv", [[], ["../wen"], ["wen 1"], ["-rf"], ["w" * 51], ["!"], [""]])
def test_the_archive_needs_a_name(copy, argv):
    refused = run(copy, "submission", *argv)
    assert refused.returncode == 1
    assert re.fullmatch("error: .*LASTNAME=wen\n", refused.stderr), refused.stderr
    assert not list(copy.glob("*.zip"))


def test_the_archive_needs_a_pdf(copy):
    no_pdf(copy)
    refused = run(copy, "submission", "wen")
    assert refused.returncode == 1
    assert re.fullmatch("error: .*report.pdf.*\n", refused.stderr), refused.stderr


def git_of_its_own(copy: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)


def corrupt_git(copy: Path) -> None:
    (copy / ".git").write_text("gitdir: nowhere", encoding="utf-8")


@pytest.mark.parametrize("around", [git_of_its_own, corrupt_git, lambda copy: None])
def test_the_archive_holds_report_and_code_whatever_git_knows(copy, around):
    around(copy)
    for left_out in ("code/data/x.py", "code/.venv/x.py", "code/__pycache__/x.pyc",
                     "code/runs/a.pt", "report/build/report.log", "report/numbers.tex"):
        (copy / left_out).parent.mkdir(parents=True, exist_ok=True)
        (copy / left_out).touch()
    (copy / "code/new.py").touch()
    packed = run(copy, "submission", "wen", PATH="")
    assert packed.returncode == 0, packed.stderr
    with zipfile.ZipFile(copy / "wen_assignment3.zip") as archive:
        names = archive.namelist()
        assert archive.read("report/report.pdf") == (REPORT / "report.pdf").read_bytes()
    code = [path.relative_to(REPOSITORY).as_posix() for folder in ("code", "report")
            for path in (REPOSITORY / folder).rglob("*.py")]
    expected = {*code, "code/new.py", "README.md", "Makefile", "requirements.txt",
                "code/pyproject.toml", "report/report.tex", "report/results/nf.json"}
    assert expected <= set(names), expected - set(names)
    assert len(names) == len(set(names))
    assert not [name for name in names if re.search("x.py|a.pt|report.log|numbers", name)]
    assert all(f"  {name}\n" in packed.stdout for name in names)


@pytest.mark.parametrize(("lastname", "archive"), [
    ("O'Brien", "O'Brien_assignment3.zip"), ("van der Wen", "van_der_Wen_assignment3.zip"),
    ("Żółć", "Żółć_assignment3.zip"), ("x; touch f", None), ("$(shell touch f)", None),
    ("`touch f`", None), ('"; touch f; "', None), ("$$(touch f)", None), ("../wen", None)])
def test_make_hands_a_name_over_as_it_is(copy, lastname, archive):
    made = subprocess.run(["make", "submission", f"LASTNAME={lastname}",
                           f"PYTHON={sys.executable}"], cwd=copy, capture_output=True, text=True,
                          check=False)
    assert not (copy / "f").exists()
    assert [path.name for path in copy.glob("*.zip")] == [archive] * bool(archive), made.stderr
    assert archive or "is not a last name" in made.stderr, made.stderr


OLD = [path for pattern in ("python3.[6-9]", ".pyenv/versions/3.[6-9].*/bin/python3")
       for folder in (Path("/usr/bin"), Path.home()) for path in folder.glob(pattern)]
SCRIPTS = sorted(path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("code/*.py")
                 if '__name__ == "__main__"' in path.read_text(encoding="utf-8"))


@pytest.mark.skipif(not OLD, reason="needs a Python older than 3.10")
@pytest.mark.parametrize("script", [*SCRIPTS, *(f"report/{name}.py" for name in (
    "check", "demonstrations", "macros", "pdf", "readme", "submission"))])
def test_an_old_python_is_refused_in_one_line(script):
    for old in OLD:
        if script in SCRIPTS and re.search(r"3\.[67]", str(old)):
            continue  # they refuse the syntax of the scripts first
        refused = subprocess.run([old, script], cwd=REPOSITORY, capture_output=True, text=True,
                                 env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, check=False)
        assert refused.returncode == 1
        assert re.fullmatch(r"error: Python 3\.10 or newer is needed; .*PYTHON=.*\n",
                            refused.stderr), (old, refused.stderr)


@pytest.mark.parametrize("python", [sys.executable, *OLD])
def test_an_installation_begins_with_a_python_that_will_do(tmp_path, python):
    """In a copy without an environment, by a Python that says so in the place of installing."""
    for name in ("Makefile", "requirements.txt", "code"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    guarded = tmp_path / "guarded"
    guarded.write_text(f'#!/bin/sh\n[ "$1" = -m ] && echo installing >&2 && exit 3\n'
                       f'exec "{python}" "$@"\n', encoding="utf-8")
    guarded.chmod(0o755)
    begun = subprocess.run(["make", "test", f"PYTHON={guarded}"], cwd=tmp_path,
                           capture_output=True, text=True, check=False)
    assert begun.returncode == 2
    assert ("installing" in begun.stderr) == (python not in OLD), begun.stderr
    assert ("Python 3.10 or newer" in begun.stderr) == (python in OLD), begun.stderr
    assert "Traceback" not in begun.stderr


def test_without_latex_the_packages_are_named_and_the_numbers_written(copy):
    assert "apt-get install latexmk" in make_without_latex(copy)
    assert len(written(copy)) > 150


@pytest.mark.skipif(not shutil.which("latexmk"), reason="needs LaTeX")
def test_the_report_compiles_without_complaints(copy):
    no_pdf(copy)
    (copy / "report/author.tex").write_text(NAMED.format(
        r"Nguyễn Văn Đức, Łukasz Żółć, Ørsted, O'Brien 50%_#&~^\{}$"),
        encoding="utf-8")
    made = subprocess.run(["make", "pdf"], cwd=copy, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout
    log = (copy / "report/build/report.log").read_text(encoding="utf-8", errors="replace")
    assert not re.findall(r"undefined|multiply defined|Missing character", log)
    assert all(float(width) <= 2 for width in re.findall(r"Overfull .*?\(([\d.]+)pt", log))
    pages = dict(re.findall(r"\\newlabel\{([^}]*)\}\{\{[^}]*\}\{(\d+)\}",
                            (copy / "report/build/report.aux").read_text(encoding="utf-8")))
    last = max(int(page) for label, page in pages.items() if label.startswith("q:"))
    assert last <= int(pages["tab:comparison"]) <= 12, pages
    assert int(pages["sec:figures"]) - int(pages["sec:failure"]) < 3, pages
    assert run(copy, "check").returncode == 0


@pytest.mark.skipif(not shutil.which("latexmk"), reason="needs LaTeX")
def test_an_error_of_latex_leaves_the_pdf_and_is_told_with_its_place(copy):
    before = (copy / "report/report.pdf").read_bytes()
    line = (copy / "report/vae.tex").read_text(encoding="utf-8").count("\n") + 1
    append(copy / "report/vae.tex", "\\nosuchcommand\n")
    failed = run(copy, "pdf")
    assert failed.returncode == 1
    told = rf"error: LaTeX stopped: \S*vae.tex:{line}: .*; see report/build/report.log\n"
    assert re.fullmatch(told, failed.stderr), failed.stderr
    assert (copy / "report/report.pdf").read_bytes() == before


# The experiments ---------------------------------------------------------------------------------

def test_d_wins_against_a_generator_that_stands_still_and_only_one_gradient_survives():
    demonstrations = module("demonstrations")
    torch.manual_seed(0)
    args = gan.parse_args(["--recipe", "template"])
    model = gan.GAN(args.latent_dim)
    before = copies.deepcopy(model.generator.state_dict())
    batches = gan.scaled(torch.randint(0, 256, (60 * 64, 784)).float()).split(64)
    curves = demonstrations.saturation(model, gan.optimizers(model, args)[1], batches)
    assert {name: len(curve) for name, curve in curves.items()} == {
        "minimax": 60, "nonsaturating": 60, "d_fake": 60}
    assert curves["d_fake"][-1] < 0.1 * curves["d_fake"][0], curves["d_fake"]
    last = curves["minimax"][-1], curves["nonsaturating"][-1]
    assert last[0] < 0.1 * last[1], last
    assert all(torch.equal(value, model.generator.state_dict()[key])
               for key, value in before.items() if key.endswith("weight"))


def with_column(table: Path, name: str, value: str | None) -> None:
    """Give every row of a CSV a value in a last column; None takes the column out."""
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    with table.open("w", encoding="utf-8", newline="") as file:
        kept = [key for key in rows[0] if key != name] + [name] * (value is not None)
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**row, name: value} for row in rows)


def test_the_vaes_curves_are_those_of_three_seeds_with_or_without_the_evaluated_one(copy):
    demonstrations, report = module("demonstrations"), copy / "report"
    tables = [report / f"results/{run}.csv" for run in demonstrations.SEEDS]
    new, figure = "train_evaluated_elbo_nats", report / "figures/demo-elbo.pdf"
    drawn = []
    for values in (None, None, None), ("90.5", "91.5", None), ("90.5", "91.5", "92.5"):
        for table, value in zip(tables, values, strict=True):
            with_column(table, new, value)
        curves = demonstrations.elbo_curves(report)
        assert (new in curves) == (None not in values), curves.keys()
        assert {curve.shape for curve in curves.values()} == {(3, 41)}
        with tables[1].open(encoding="utf-8") as file:
            second = [float(row["val_elbo_nats"]) for row in csv.DictReader(file)]
        assert curves["val_elbo_nats"][1].tolist() == second
        demonstrations.show_elbo(figure.parent, report)
        drawn.append(figure.read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]
    tables[2].unlink()
    with pytest.raises(RunError, match=r"there is no 'results/vae-z20-seed2.csv'"):
        demonstrations.elbo_curves(report)


def test_naive_estimates_are_means_over_the_first_draws_of_the_prior(monkeypatch):
    demonstrations, drawn = module("demonstrations"), []
    monkeypatch.setattr(demonstrations, "NAIVE_DRAWS", (1, 10, 25))
    monkeypatch.setattr(demonstrations, "DECODED_TOGETHER", 4)
    torch.manual_seed(0)
    model, x = vae.VAE(16, 3).eval(), torch.randint(0, 2, (7, 784)).float()
    logits = model.decoder.logits
    monkeypatch.setattr(model.decoder, "logits", lambda z: (drawn.append(z), logits(z))[1])
    estimates = demonstrations.naive_estimates(model, x, torch.Generator().manual_seed(1))
    z = torch.cat(drawn)
    log_p = -vae.bernoulli_nll(logits(z)[:, None].expand(-1, 7, -1), x).double()  # (25, 7)
    expected = [(math.log(k) - log_p[:k].logsumexp(dim=0)).mean().item() for k in (1, 10, 25)]
    assert len(z) == 25 and estimates == pytest.approx(expected, rel=1e-6)


def test_the_codes_have_the_page_that_the_report_cuts_its_frame_from():
    """The frame of vae-z2-codes.pdf is cut out by lengths that are right for one page only."""
    left, bottom, right, top = map(float, re.search(
        r"trim=([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+), clip\]\{vae-z2-codes",
        (REPORT / "vae.tex").read_text(encoding="utf-8")).groups())
    page = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]",
                     (REPORT / "figures/vae-z2-codes.pdf").read_bytes())
    width, height = map(float, page.groups())
    assert abs(width - 190.07) < 0.1 and abs(height - 191.27) < 0.1, (width, height)
    assert abs((width - left - right) - (height - bottom - top)) < 0.3, "the frame is a square"
