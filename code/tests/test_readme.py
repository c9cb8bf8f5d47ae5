"""The README: its commands, its tree of files, its tables, its numbers and times."""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path

import pytest

from naming import name_of
from report_modules import REPORT, REPOSITORY, module

README = (REPOSITORY / "README.md").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()
SOURCES = [path for folder in ("code", "code/a3", "report")
           for path in sorted((REPOSITORY / folder).glob("*.py"))]
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
# A command, up to two blanks, a comment or the end of its line or code.
COMMAND = re.compile(r"\bmake ([a-z]+)\b|(?:\bpython|\$\(PY\)|\$\(PYTHON\)) "
                     r"((?:code|report)/\w+\.py(?: [^\s#`]+)*)")
TARGETS = {target: re.findall(r"^\t(.*)", recipe, re.MULTILINE) for target, recipe in
           re.findall(r"^([a-z]+):.*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE)}


def commands(text: str) -> list[str]:
    """Return "make x" and "code/x.py --flag ..." in the order of the text."""
    return [f"make {found[1]}" if found[1] else found[2] for found in COMMAND.finditer(text)]


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text()))


# Commands ----------------------------------------------------------------------------------------

def refused(command: str) -> str | None:
    """Return why a command cannot be given, or None."""
    if command.startswith("make "):
        return None if command.split()[1] in TARGETS else "there is no such target"
    script, *argv = shlex.split(command)
    if not (REPOSITORY / script).exists():
        return "there is no such file"
    if script.startswith("code/"):
        try:
            name_of(importlib.import_module(Path(script).stem), argv)
        except SystemExit:
            return "there are no such flags"
    return None


@pytest.mark.parametrize(("text", "at_least"), [
    pytest.param(commands(SHELL), 10, id="README.md"),
    pytest.param(commands(re.sub(r"^#.*", "", MAKEFILE, flags=re.MULTILINE)), 15, id="Makefile"),
    pytest.param(commands("\n".join(map(docstring, SOURCES))), 15, id="docstrings")])
def test_commands_exist_and_parse(text, at_least, capsys):
    assert len(text) >= at_least, text
    reasons = {command: refused(command) for command in text}
    assert not any(reasons.values()), (reasons, capsys.readouterr().err)


def test_the_readme_and_the_makefile_show_nothing_else_to_type():
    for line in filter(None, (line.split("#")[0].strip() for line in SHELL.splitlines())):
        assert COMMAND.search(line) or line.split()[0] in {"git", "cd", "export"}, line
    described = set(re.findall(r"^# make ([a-z]+)", MAKEFILE, re.MULTILINE))
    assert described == set(TARGETS), described ^ set(TARGETS)


def test_every_script_says_how_to_start_it():
    for path in SOURCES:
        if path.parent.name != "a3" and 'if __name__ == "__main__":' in path.read_text():
            started = {command.split()[0] for command in commands(docstring(path))}
            assert str(path.relative_to(REPOSITORY)) in started, path
        for command in re.findall(r"^ +python .*", docstring(path), re.MULTILINE):
            assert COMMAND.search(command), (path, command)


# Numbers -----------------------------------------------------------------------------------------

TIME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?) (min|s)\b")


def said_after(text: str) -> list[tuple[str, str]]:
    """Return each command of a text with what follows it on its line, up to the next one."""
    found = []
    for line in text.splitlines():
        matches = list(COMMAND.finditer(line))
        for match, following in zip_longest(matches, matches[1:]):
            end = following.start() if following else len(line)
            found.append((commands(match[0])[0], line[match.end():end]))
    return found


def the_same(command: str) -> str:
    """Return the one command of a target that runs nothing else, or the command itself."""
    recipe = TARGETS.get(command.removeprefix("make "), [])
    return commands(recipe[0])[0] if len(recipe) == 1 and commands(recipe[0]) else command


def test_times_agree_wherever_a_command_stands():
    times = defaultdict(list)
    texts = {"README.md": README, "Makefile": MAKEFILE,
             **{path.name: docstring(path) for path in SOURCES}}
    for file, text in texts.items():
        for command, said in said_after(text):
            if time := TIME.search(said):
                times[the_same(command)].append((time[0], file))
    different = [found for found in times.items() if len({time for time, _ in found[1]}) > 1]
    assert not different, different
    assert sum(len(places) > 1 for places in times.values()) >= 10, times


def test_numbers_beside_a_command_are_in_the_results_of_its_run():
    checked, texts = [], "\n".join((README, *map(docstring, SOURCES)))
    for command, said in said_after(texts):
        bare = re.sub(r"\d+ cores", "", TIME.sub("", said))
        numbers = re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)", bare)
        if command.startswith("code/") and numbers:
            script, *argv = shlex.split(command)
            name = name_of(importlib.import_module(Path(script).stem), argv)[0]
            file = REPORT / "results" / f"{name.replace('-auto', '', 1)}.json"
            split = "val_" if "validation" in said else "test_" if "test" in said else ""
            values = [value for key, value in json.loads(file.read_text()).items()
                      if isinstance(value, float) and key.startswith(split)]
            for number in numbers:
                decimals = len(number.partition(".")[2])
                assert number in {f"{value:.{decimals}f}" for value in values}, (command, number)
            checked.append(command)
    assert len(set(checked)) >= 5, checked


# Tree --------------------------------------------------------------------------------------------

def tree() -> list[str]:
    """Return the paths of the README's tree.

    Names stand before two blanks or the end of a line; indented ones are of the last folder.
    """
    (block,) = [block for block in re.findall(r"```text\n(.*?)```", README, re.DOTALL)
                if "a3_vae_template.py" in block]
    paths, folder = [], ""
    for line in block.splitlines():
        names = re.split(r" {2,}", line.strip())[0].split(" ")
        if line.startswith(" "):
            paths += [folder + name for name in names]
        else:
            paths += names
            folder = names[0] if names[0].endswith("/") else ""
    return paths


def test_the_tree_is_that_of_the_files():
    paths = tree()
    assert len(paths) == len(set(paths)), sorted(paths)
    for path in paths:
        assert (REPOSITORY / path).exists(), path
        assert path.endswith("/") == (REPOSITORY / path).is_dir(), path
    files = {str(path.relative_to(REPOSITORY)) for path in SOURCES if path.parent.name != "a3"}
    listed = {path for path in paths if path.endswith(".py")}
    assert listed == files, listed ^ files


# Tables ------------------------------------------------------------------------------------------

def test_the_tables_are_those_of_the_results():
    assert module("readme").readme(README) == README, "make readme"


@pytest.mark.parametrize(("table", "file", "keys"), [
    ("results", "vae-z20", ["val_elbo_nats"]), ("results", "gan-template", ["frechet_distance"]),
    ("comparison", "comparison", ["nf", "recall"]),
    ("comparison", "comparison", ["floor", "coverage_deviation"]),
    ("study", "study", ["rows", 0, "kl_nats"])])
def test_another_result_changes_its_table_and_nothing_else(table, file, keys, tmp_path):
    results = shutil.copytree(REPORT / "results", tmp_path / "results")
    record = json.loads((results / f"{file}.json").read_text())
    row = record
    for key in keys[:-1]:
        row = row[key]
    assert "7777" not in README
    row[keys[-1]] = 7777.0
    (results / f"{file}.json").write_text(json.dumps(record))
    changed = module("readme").readme(README, results_folder=results)
    pairs = list(zip(README.splitlines(), changed.splitlines(), strict=True))
    (line,) = [new for old, new in pairs if old != new]
    assert "7777" in line.replace(",", ""), line
    start, end = f"<!-- table: {table} -->", "<!-- end -->"
    assert line in changed.split(start)[1].split(end)[0].splitlines()


def test_a_deviation_is_over_trainings_or_of_a_single_one_over_its_draws():
    readme = module("readme")
    keys = {key: 2.0 for _, key, _, _ in readme.MEASURES} | {"parameters": 2}
    row = {**keys, "trainings": 3, **{f"{key}_deviation": 0.5 for key in keys},
           **{f"{key}_sampling_deviation": 0.25 for key in keys}}
    single = {**row, "trainings": 1, **{f"{key}_deviation": None for key in keys}}
    table = readme.comparison({"repeats": 4, "samples": 1000, "vae": row, "floor": single})
    title, _, first, *_ = table.splitlines()
    assert title == ("| mean ± deviation over trainings; of one training, over 4 sets of 1,000 "
                     "samples | VAE, 3 trainings | floor |")
    assert first == "| Frechet distance | 2.00 ± 0.50 | 2.00 ± 0.25 |"


def test_the_table_of_the_soak_has_what_was_tried_and_lost(tmp_path):
    results = shutil.copytree(REPORT / "results", tmp_path / "results")
    groups = list(module("readme").TRIED)
    (results / "soak.json").write_text(json.dumps({
        "tried": {group: 2000 + i for i, group in enumerate(groups)},
        "lost": {group: i for i, group in enumerate(groups)}}))
    lines = module("readme").tables(results)["soak"].splitlines()[2:]
    assert [line.split(" | ")[1:] for line in lines] == [
        [f"2,00{i}", f"{i} |"] for i in range(len(groups))]
    for group in ("killed", "stopped", "disk_full", "not_finite"):
        assert group in groups


def test_a_readme_without_its_results_stays_and_says_so_in_one_line(tmp_path):
    (tmp_path / "report").mkdir()
    shutil.copytree(REPORT / "results", tmp_path / "report/results")
    for file in ("report/readme.py", "report/sources.py", "code/a3/__init__.py",
                 "code/a3/interrupts.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / file, tmp_path / file)
    (tmp_path / "report/results/nf.json").unlink()
    (tmp_path / "README.md").write_text(README)
    failed = subprocess.run([sys.executable, "report/readme.py"], cwd=tmp_path,
                            capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert re.fullmatch("error: .*nf.*\n", failed.stderr), failed.stderr
    assert (tmp_path / "README.md").read_text() == README
