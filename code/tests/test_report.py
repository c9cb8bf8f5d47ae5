"""The report: its numbers, figures and headings, the grader's list, the archive to hand in."""

import copy as copies
import csv
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import a3_gan_template as gan
from a3 import figures
from report_modules import REPORT, REPOSITORY, module

sources, macros, check, missing = (
    module(name) for name in ("sources", "macros", "check", "missing"))
QUESTIONS = [*(f"1.{i}" for i in range(1, 16)), *(f"2.{i}" for i in range(1, 8)),
             *(f"3.{i}" for i in range(1, 9)), "4.1"]  # the assignment's


@pytest.fixture
def copy(tmp_path) -> Path:
    """Return the repository's report and code in a folder of their own."""
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("report", "code"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=ignore)
    for file in ("Makefile", "README.md", "requirements.txt"):
        shutil.copy(REPOSITORY / file, tmp_path)
    for left in (tmp_path / "report").glob("*.log"):
        left.unlink()
    (tmp_path / "report/numbers.tex").unlink(missing_ok=True)
    return tmp_path


def run(copy: Path, script: str, *argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, f"report/{script}.py", *argv], cwd=copy,
                          capture_output=True, text=True, check=False)


def written(copy: Path) -> dict[str, str]:
    r"""Return the macros of numbers.tex: "num@<key>@<decimals>" and what it stands for."""
    lines = (copy / "report/numbers.tex").read_text().splitlines()
    found = [re.fullmatch(r"\\expandafter\\def\\csname (.*?)\\endcsname(#1)?\{(.*)\}", line)
             for line in lines[2:]]
    return {match[1]: match[3] for match in found}


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def change_result(copy: Path, file: str, **changes) -> None:
    path = copy / "report/results" / f"{file}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_number_is_written_as_its_results_file_has_it(copy):
    assert run(copy, "macros").returncode == 0
    shown_by = written(copy)
    used = re.findall(r"\\num(?:\[(\d)\])?\{([^#}]*)\}",
                      re.sub(r"(?<!\\)%.*", "", "".join(
                          (REPORT / name).read_text() for name in sources.texts(REPORT))))
    assert len(used) > 150
    for decimals, name in used:
        file, *keys = name.split(".")
        if keys[0] == "csv":
            with (REPORT / "results" / f"{file}.csv").open() as table:
                value = float(list(csv.DictReader(table))[int(keys[1])][keys[2]])
        else:
            value = json.loads((REPORT / "results" / f"{file}.json").read_text())
            for key in keys:
                value = value[int(key)] if isinstance(value, list) else value[key]
        shown = shown_by[f"num@{name}@{decimals}"].replace("{,}", ",")
        if not isinstance(value, str):
            shown = shown.replace(r"\ensuremath{-}", "-")
            value = f"{value:,.{int(decimals or 0)}f}"
        assert shown == value, (name, shown, value)


def test_a_number_without_a_result_stops_the_build_with_its_place(copy):
    gan = copy / "report/gan.tex"
    line = gan.read_text().count("\n") + 2
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


@pytest.mark.parametrize("rows", [16, 18])
def test_the_study_has_a_row_for_every_case(copy, rows):
    keys = re.findall(r"#1\.(\w+)", (REPORT / "study-table.tex").read_text())
    results = [{"nll_samples": 7, "precision": "float32", **dict.fromkeys(keys, i),
                "name": f"case {i}"} for i in range(rows)]
    (copy / "report/results/study.json").write_text(json.dumps({"rows": results, "epochs": 40}))
    shutil.copy(REPORT / "figures/nf-bpd.pdf", copy / "report/figures/study-likelihoods.pdf")
    assert run(copy, "macros").returncode == 0
    found = written(copy)
    assert found["each@study.rows"] == "".join(f"#1{{{i}}}" for i in range(rows))
    assert [found[f"num@study.rows.{i}.name@"] for i in range(rows)] == [
        f"case {i}" for i in range(rows)]


def test_optional_parts_are_skipped_as_latex_skips_them(copy):
    (copy / "report/results/study.json").unlink(missing_ok=True)
    (copy / "report/figures/vae-z20-walk-attributes.png").unlink()
    assert not {"study-table.tex", "walks.tex"} & set(sources.texts(copy / "report"))
    assert run(copy, "macros").returncode == 0


def test_every_figure_is_there():
    included = sources.figures(REPORT)
    assert len(included) > 25
    for name in included:
        assert (REPORT / "figures" / name).stat().st_size > 300, name


def test_every_citation_has_its_reference():
    text = "".join(sources.texts(REPORT).values())
    cited = {key for keys in re.findall(r"\\cite[pt]?\{([^{}]*)\}", text)
             for key in keys.split(",")}
    assert cited <= set(re.findall(r"@\w+\{(\w+),", (REPORT / "references.bib").read_text()))


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
    file.write_text(file.read_text().replace(r"\question{3.2}", r"\question{3.22}"))


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
    assert told[0] == ("report/results lacks vae-z20-seed1, nf, study, benchmark: 75 min on 2 "
                       "cores")
    assert [line for line in told if not line.startswith("python")][1:] == [
        "a3_vae_template.py --seed 1 --resume", "a3_nf_template.py --resume", "study.py"]


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


@pytest.mark.parametrize("argv", [[], ["../wen"], ["wen 1"], [""]])
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


def test_the_archive_holds_the_pdf_and_the_tracked_code(copy):
    code = sorted(str(path.relative_to(copy)) for folder in ("code", "report")
                  for path in (copy / folder).rglob("*.py"))
    for command in (["init", "--quiet"], ["add", "--force", "code", "report", "README.md"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    (copy / "code/untracked.py").touch()
    packed = run(copy, "submission", "wen")
    assert packed.returncode == 0, packed.stderr
    with zipfile.ZipFile(copy / "wen_assignment3.zip") as archive:
        names = archive.namelist()
        assert archive.read("report/report.pdf") == (REPORT / "report.pdf").read_bytes()
    assert sorted(names) == sorted([*code, "README.md", "code/pyproject.toml",
                                    "report/report.pdf"])
    assert all(f"  {name}\n" in packed.stdout for name in names)


def test_without_latex_the_packages_are_named_and_the_numbers_written(copy):
    tools = copy / "bin"
    tools.mkdir()
    (tools / "python3").symlink_to(sys.executable)
    failed = subprocess.run([shutil.which("make"), "pdf"], cwd=copy, env={"PATH": str(tools)},
                            capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "apt-get install latexmk" in failed.stdout.splitlines()[-1]
    assert len(written(copy)) > 150


@pytest.mark.skipif(not shutil.which("latexmk"), reason="needs LaTeX")
def test_the_report_compiles_without_complaints(copy):
    no_pdf(copy)
    made = subprocess.run(["make", "pdf"], cwd=copy, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout
    log = (copy / "report/report.log").read_text(errors="replace")
    assert not re.findall(r"undefined|multiply defined|Missing character", log)
    assert all(float(width) <= 2 for width in re.findall(r"Overfull .*?\(([\d.]+)pt", log))
    pages = dict(re.findall(r"\\newlabel\{([^}]*)\}\{\{[^}]*\}\{(\d+)\}",
                            (copy / "report/report.aux").read_text()))
    assert int(pages["q:4.1"]) <= 16 and int(pages["tab:comparison"]) <= 16
    assert run(copy, "check").returncode == 0


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
