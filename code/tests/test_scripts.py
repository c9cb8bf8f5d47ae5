"""The scripts as a user starts them: smoke runs, resuming, names of runs, housekeeping."""

import argparse
import ast
import contextlib
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest
import torch

import a3
import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import nf_multiscale
import vae_variants
from a3 import figures, judge_classifier, vae_figures, vae_monitors
from a3.runs import EVALUATION_ONLY
from helpers import SMALL_FLOW
from made_up import SMOKE
from naming import name_of

CODE = Path(vae.__file__).parent
REPOSITORY = CODE.parent
THREE_TIMES = {"samples-start.png", "samples-half.png", "samples-end.png", "gallery.png"}
EPOCHS = 3
# A script, the module whose loop it trains by, flags, the figures of a run.
SCRIPTS = {
    "vae": (vae, vae, ["--zdim", "2", "--hidden_dim", "20", "--nll_samples", "20"],
            THREE_TIMES | {"elbo.pdf", "reconstructions.png", "codes.pdf", "manifold-start.png",
                           "manifold-half.png", "manifold-end.png"}),
    "vae_variants": (vae_variants, vae,
                     ["--zdim", "3", "--hidden_dim", "20", "--nll_samples", "20", "--shift", "1",
                      "--objective", "beta", "--beta_warmup", "2", "--posterior", "flow",
                      "--prior", "flow"],
                     THREE_TIMES | {"elbo.pdf", "reconstructions.png"}),
    "nf": (nf, nf, ["--n_flows", "1", "--n_hidden", "16", "--iw_samples", "2"],
           THREE_TIMES | {"bpd.pdf", "pixel.pdf", "interpolation.png", "temperatures.png"}),
    "nf_multiscale": (nf_multiscale, nf, [],
                      THREE_TIMES | {"bpd.pdf", "interpolation.png", "temperatures.png",
                                     "bits.pdf"}),
    "gan": (gan, gan, ["--latent_dim", "8"],
            THREE_TIMES | {"losses.pdf", "interpolation.png", "chain.png", "nearest.png"}),
}
every_script = pytest.mark.parametrize("name", SCRIPTS)


# Smoke runs --------------------------------------------------------------------------------------

@pytest.fixture(scope="module", autouse=True)
def small():
    """Let smoke runs draw small images, look at few codes, and judge few samples quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "ZOOM", 1)
        patch.setattr(vae_figures, "MANIFOLD_SIDE", 4)
        patch.setattr(vae_monitors, "EXAMINED_CODES", 20)
        patch.setattr(judge_classifier, "EPOCHS", 1)
        patch.setattr(gan, "EVALUATION_SAMPLES", 500)
        patch.setattr(nf_multiscale, "ROUND_TRIPS", 20)
        for name, value in SMALL_FLOW.items():
            patch.setattr(nf_multiscale, name, value)
        yield


def flags(name: str, out: Path) -> list[str]:
    return [*SMOKE, *SCRIPTS[name][2], "--epochs", str(EPOCHS), "--out", str(out)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function that runs a script once: its folder, its results, what it printed."""
    runs = {}

    def run(name: str) -> tuple[Path, dict, list[str]]:
        if name not in runs:
            out = tmp_path_factory.mktemp(name)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                results = SCRIPTS[name][0].main(flags(name, out))
            runs[name] = out, results, printed.getvalue().splitlines()
        return runs[name]

    return run


@every_script
def test_a_smoke_run_writes_its_figures_and_numbers(name, whole):
    out, results, _ = whole(name)
    (file,) = out.glob("results/*.json")
    assert json.loads(file.read_text()) == results
    assert {path.name for path in out.glob("results/*")} == {f"{file.stem}.json",
                                                             f"{file.stem}.csv"}
    drawn = {path.name.removeprefix(f"{file.stem}-") for path in out.glob("figures/*")}
    assert drawn == SCRIPTS[name][3], drawn ^ SCRIPTS[name][3]
    for figure in out.glob("figures/*"):
        assert figure.stat().st_size > 300, figure
    assert (out / "checkpoints" / file.stem / "last.pt").exists()


@every_script
def test_a_run_prints_a_short_line_an_epoch(name, whole):
    lines = [line for line in whole(name)[2] if line.startswith("[")]
    assert [line.split("]")[0] for line in lines] == [f"[  {i}/{EPOCHS}"
                                                      for i in range(EPOCHS + 1)]
    assert max(map(len, lines)) <= 100, max(lines, key=len)


def weights(out: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = out.glob("checkpoints/*/last.pt")
    return torch.load(checkpoint, weights_only=True)["kept"]["model"]


@every_script
@pytest.mark.parametrize("stop_in", [1, 2])
def test_the_same_seed_gives_the_same_bits_stopped_or_not(name, stop_in, whole, tmp_path,
                                                          monkeypatch):
    script, loop, _, _ = SCRIPTS[name]
    out, results, _ = whole(name)
    original, calls = loop.run_epoch, []

    def run_epoch(*args, **kwargs):
        calls.append(1)
        result = original(*args, **kwargs)
        if len(calls) == stop_in + 1:
            raise KeyboardInterrupt
        return result

    for classifier in out.glob("checkpoints/*.pt"):  # which would be trained to the same bits
        (tmp_path / "checkpoints").mkdir()
        shutil.copy(classifier, tmp_path / "checkpoints")
    argv = flags(name, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_epoch", run_epoch)
        with pytest.raises(SystemExit) as stop:
            script.exit_with(lambda: script.main(argv))
        assert stop.value.code == 130
    assert list((tmp_path / "figures").glob("*-partial-*")), "the figures so far"
    resumed = script.main([*argv, "--resume"])

    one, other = weights(out), weights(tmp_path)
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)
    clocks = ("epoch_seconds", "train_seconds", "date", "evaluated")
    one, other = ({key: value for key, value in run.items() if key not in clocks}
                  for run in (results, resumed))
    assert one == other
    drawn, redrawn = (sorted((folder / "figures").iterdir()) for folder in (out, tmp_path))
    for one, other in zip(drawn, redrawn, strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes(), one.name


@every_script
def test_ctrl_c_in_the_untrained_epoch_ends_in_one_line(name, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    script, loop, _, _ = SCRIPTS[name]
    monkeypatch.setattr(loop, "run_epoch", interrupt)
    with pytest.raises(SystemExit) as stop:
        script.exit_with(lambda: script.main(flags(name, tmp_path)))
    assert stop.value.code == 130
    assert capsys.readouterr().out.splitlines()[-1] == "stopped"


def test_a_gan_is_not_trained_on_a_batch_of_one_image(tmp_path):
    for size in ("1", "255"):  # of 256 images
        with pytest.raises(gan.RunError, match=f"'--batch_size {size}' leaves a batch of one"):
            gan.main([*flags("gan", tmp_path), "--batch_size", size])


@pytest.mark.parametrize(("settings", "end"), [
    ("PYTHONIOENCODING=cp932", "> log 2>&-"), ("A=", ">&- 2>&-"),
    ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", "| head -1 > log")])
def test_a_training_outlives_what_it_is_printed_to(settings, end, tmp_path):
    command = (f"{settings} {sys.executable} a3_vae_template.py --dataset sample --epochs 1 "
               f"--limit 64 --device cpu --hidden_dim 8 --nll_samples 1 --out '{tmp_path}/Café ł' "
               f"{end}").replace("> log", f"> '{tmp_path}/log'")
    child = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=CODE, check=False,
                           capture_output=True, text=True)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", ""), child
    assert list((tmp_path / "Café ł").glob("results/*.json"))
    log = tmp_path / "log"
    assert not log.exists() or log.read_bytes().startswith(b"data: sample")


def test_importing_a_script_does_nothing():
    scripts = ", ".join(path.stem for path in CODE.glob("*.py"))
    child = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv.append('--no-such-flag')\n"
         f"import {scripts}; print('imported', 'scipy' in sys.modules)"],
        cwd=CODE, capture_output=True, text=True, check=False)
    assert (child.stdout, child.stderr) == ("imported False\n", "")  # scipy takes 0.5 s


# Names of runs -----------------------------------------------------------------------------------

NO_NUMBER = {"device", "data_root", "out", "resume", "save_interval", "jobs", "collect",
             "npz", "export", "tensorboard", "only"}  # change none
TRIED = ("2", "3", "20", "0.5", "cpu", "another", "mnist", "sample")


def other_values(action: argparse.Action) -> list[list[str]]:
    """Return how to give an action other values than its default, as arguments."""
    flag = action.option_strings[-1:]
    if action.nargs == 0:
        return [flag]
    given = []
    for text in action.choices or TRIED:
        with contextlib.suppress(ValueError, argparse.ArgumentTypeError):
            value = (action.type or str)(text)
            given += [[*flag, text]] if value != action.default else []
    return given


def with_and_without(script: ModuleType, base: list[str], given: list[str]) -> tuple[str, str]:
    """Return the names with and without an argument, by an objective that reads it."""
    weights = {"beta": ["--beta", "1.75"], "free_bits": ["--free_bits", "1.75"]}
    if given[0] == "--objective":
        given = [*given, *weights.get(given[1], [])]
    for objective in ("elbo", "beta", "free_bits", "iwae"):
        fitting = [*base, *(["--objective", objective, *weights.get(objective, [])]
                            if objective != "elbo" else [])]
        with contextlib.suppress(SystemExit):
            return name_of(script, [*fitting, *given])[0], name_of(script, fitting)[0]
    raise AssertionError(f"{given} is refused with every objective")


@pytest.mark.parametrize(("command", "plain"), [
    ("a3_vae_template", "vae-z20"), ("a3_nf_template", "nf"), ("a3_gan_template", "gan"),
    ("a3_gan_template --recipe template", "gan-template"), ("vae_variants", "vae-variant-z20"),
    ("vae_variants --recipe best", "vae-best"), ("nf_multiscale", "nf-multiscale"),
    ("walks", "vae-z20-walk"), ("sample", "vae-z20-drawn"),
    ("evaluate", "comparison"), ("study", "study"), ("ablation --models vae", "ablation-vae"),
    ("benchmark", "benchmark")])
def test_a_flag_is_in_the_name_of_a_run_if_it_changes_a_number(command, plain):
    script, *base = command.split()
    script = importlib.import_module(script)
    name, parser = name_of(script, base)
    assert name.replace("-auto", "") == plain, (name, plain)
    trains = any(action.dest == "resume" for action in parser._actions)
    silent = NO_NUMBER | (EVALUATION_ONLY if trains else set())
    for action in parser._actions:
        if action.dest == "help" or action.option_strings == base[:1]:
            continue
        names = set()
        given = other_values(action)
        for one in given:
            name, without = with_and_without(script, base, one)
            if action.dest in silent:
                assert name == without, (one, name, without)
            else:
                assert name != without, (one, name)
            names.add(name)
        assert given, f"no other value of {action.dest} is tried"
        assert action.dest in silent or len(names) == len(given), (action.dest, names)


# Housekeeping ------------------------------------------------------------------------------------

TEMPLATES = {path.stem for path in CODE.glob("a3_*_template.py")}
MODULES = {"a3", *(path.stem for path in CODE.glob("*.py"))}
# What each module of code/ may import of the others; the rest are evaluation scripts.
ALLOWED = {"a3": {"a3"}, "datasets": {"a3"},
           **{template: {"a3", "datasets"} for template in TEMPLATES},
           "vae_variants": {"a3", "datasets", "a3_vae_template"},
           "nf_multiscale": {"a3", "datasets", "a3_nf_template"},
           "baseline": set(),
           **{script: {"a3", "datasets", "vae_variants", "nf_multiscale", "baseline", *TEMPLATES}
              for script in ("evaluate", "study", "walks", "benchmark", "judges")},
           "ablation": {"a3", "study", *TEMPLATES},
           "sample": {"a3", "vae_variants", "nf_multiscale", "evaluate", *TEMPLATES}}


def without_tests() -> list[Path]:
    return [path for path in CODE.rglob("*.py") if path.relative_to(CODE).parts[0] != "tests"]


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, "from a import b" as both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relative to itself"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_imports_go_one_way():
    """From evaluation to models to data to what all share, never back."""
    assert set(ALLOWED) == MODULES, set(ALLOWED) ^ MODULES
    for path in without_tests():
        module = path.relative_to(CODE).parts[0].removesuffix(".py")
        back = (tops(path) & MODULES) - ALLOWED[module]
        assert not back, f"{path.relative_to(REPOSITORY)} imports {', '.join(back)}"


def test_what_the_scripts_share_is_listed_where_it_is():
    listed = set(re.findall(r"\b[a-z]+(?:_[a-z]+)?\b", a3.__doc__))
    files = {path.stem for path in (CODE / "a3").glob("*.py")} - {"__init__"}
    assert files <= listed, files - listed
    first = set(re.findall(r"^    (\w+)", a3.__doc__, re.MULTILINE))
    assert first <= files, first - files


def test_requirements_cover_the_imports_and_nothing_else():
    own = MODULES | {path.stem for path in (CODE / "tests").glob("*.py")}
    used = {name for path in CODE.rglob("*.py") for name in tops(path)}
    used = {"pillow" if name == "PIL" else name for name in used - own - sys.stdlib_module_names}
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    listed = {re.match(r"[\w-]+", line)[0] for line in lines if line[:1].isalpha()}
    listed -= {"ruff", "pytest-xdist"}  # a command, and what pytest finds by itself
    listed -= {"tensorboard"}  # what torch.utils.tensorboard imports
    assert listed == used, listed ^ used


def test_only_tests_use_the_forbidden_distributions():
    for path in without_tests():
        assert not any(name.startswith("torch.distributions") for name in imports(path)), path
        assert not any(isinstance(node, ast.Attribute) and node.attr == "distributions"
                       for node in ast.walk(ast.parse(path.read_text()))), path


def test_code_is_no_package():
    assert not (CODE / "__init__.py").exists(), "it would shadow the standard library's code"


def test_every_text_file_is_opened_as_utf8_whatever_the_locale():
    texts = {"read_text", "write_text", "open", "fdopen", "TextIOWrapper"}
    binary = re.compile("^[rwax]?b|b[+]?$|^x?b")
    seen = 0
    for path in [*CODE.glob("*.py"), *CODE.glob("a3/*.py"), *REPOSITORY.glob("report/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            modes = [argument.value for argument in node.args
                     if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]
            of_os = ast.unparse(node.func) in ("os.open", "gzip.open")
            if name in texts and not of_os and not any(map(binary.search, modes)):
                seen += 1
                assert "encoding" in {keyword.arg for keyword in node.keywords}, (
                    f"{path.name}, line {node.lineno}")
    assert seen >= 6, seen


# Where tests are started -------------------------------------------------------------------------

@pytest.mark.parametrize(("folder", "arguments"), [
    ("", []), ("", ["code/tests/test_small.py"]), ("code", []), ("code/tests", []),
    ("", ["-c", "code/pyproject.toml", "code/tests"])])
def test_tests_run_from_any_folder(folder, arguments, tmp_path):
    """In a copy with one small test, which imports ours and must see a warning as an error."""
    for file in ("pyproject.toml", "a3/__init__.py", "a3/interrupts.py", "tests/conftest.py",
                 "tests/report_modules.py"):
        copied = tmp_path / "code" / file
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CODE / file, copied)
    (tmp_path / "code/tests/test_small.py").write_text(textwrap.dedent("""
        import warnings
        import a3, pytest, report_modules

        def test_small():
            with pytest.raises(RuntimeWarning):
                warnings.warn("a division by zero", RuntimeWarning)
        """), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items()
                   if not key.startswith(("PYTEST", "PYTHON"))}
    # As `pytest` does, which unlike `python -m pytest` puts no folder on the path; -P is 3.11's.
    start = [sys.executable, *["-P"] * (sys.version_info >= (3, 11)), "-m", "pytest"]
    child = subprocess.run([*start, *arguments], cwd=tmp_path / folder, env=environment,
                           capture_output=True, text=True, check=False)
    assert child.returncode == 0 and "100%" in child.stdout, child.stdout + child.stderr
