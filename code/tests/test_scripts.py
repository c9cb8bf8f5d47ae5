"""The scripts as a user starts them: smoke runs, resuming, housekeeping."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.utils.flop_counter

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import benchmark
import digit_classifier as judge
from datasets import Source, Split

CODE = Path(vae.__file__).parent
REPOSITORY = CODE.parent
SMOKE = ["--dataset", "sample", "--limit", "256", "--device", "cpu"]
SCRIPTS = [
    (vae, [*SMOKE, "--zdim", "2", "--hidden_dim", "20"]),
    (nf, [*SMOKE, "--n_flows", "1", "--n_hidden", "16", "--iw_samples", "2"]),
]
GAN = (gan, [*SMOKE, "--latent_dim", "8"])
every_script = pytest.mark.parametrize(("script", "argv"), [*SCRIPTS, GAN],
                                       ids=["vae", "nf", "gan"])


@pytest.fixture(autouse=True)
def quick_judge(monkeypatch):
    """Let smoke runs of the GAN judge few samples, by a classifier of one epoch."""
    monkeypatch.setattr(judge, "EPOCHS", 1)
    monkeypatch.setattr(gan, "EVALUATION_SAMPLES", 500)
    monkeypatch.setattr(gan, "SATURATION_UPDATES", 3)


def weights(out: Path) -> dict:
    (checkpoint,) = out.glob("checkpoints/*/last.pt")
    kept = torch.load(checkpoint, weights_only=True)["kept"]
    return {f"{network}.{key}": value for network in ("model", "generator", "discriminator",
                                                      "average") if network in kept
            for key, value in kept[network].items()}


@every_script
def test_a_smoke_run_writes_its_figures_and_numbers(script, argv, tmp_path):
    results = script.main([*argv, "--epochs", "3", "--out", str(tmp_path)])
    (file,) = tmp_path.glob("results/*.json")
    assert json.loads(file.read_text()) == results
    for figure in tmp_path.glob("figures/*"):
        assert figure.stat().st_size > 300, figure
    assert len(list(tmp_path.glob("figures/*"))) >= 5


@every_script
@pytest.mark.parametrize("stop_in", [1, 2])
def test_the_same_seed_gives_the_same_bits_stopped_or_not(script, argv, stop_in, tmp_path,
                                                          monkeypatch):
    argv = [*argv, "--epochs", "3"]
    results = script.main([*argv, "--out", str(tmp_path / "whole")])

    original, calls = script.run_epoch, []

    def run_epoch(*args, **kwargs):
        calls.append(1)
        result = original(*args, **kwargs)
        if len(calls) == stop_in + 1:
            raise KeyboardInterrupt
        return result

    parts = [*argv, "--out", str(tmp_path / "parts")]
    with monkeypatch.context() as patch:
        patch.setattr(script, "run_epoch", run_epoch)
        with pytest.raises(SystemExit) as stop:
            script.exit_with(lambda: script.main(parts))
        assert stop.value.code == 130
    assert list((tmp_path / "parts/figures").glob("*")), "the figures so far"
    resumed = script.main([*parts, "--resume"])

    whole, part = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[key], part[key]) for key in whole)
    for clock in ("epoch_seconds", "train_seconds", "date"):
        del results[clock], resumed[clock]
    assert results == resumed
    drawn, redrawn = (sorted((tmp_path / folder / "figures").iterdir())
                      for folder in ("whole", "parts"))
    for one, other in zip(drawn, redrawn, strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes(), one.name


def test_importing_a_script_does_nothing():
    child = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv.append('--no-such-flag')\n"
         "import a3_vae_template, a3_nf_template, a3_gan_template, benchmark; print('imported')"],
        cwd=CODE, capture_output=True, text=True, check=False)
    assert (child.stdout, child.stderr) == ("imported\n", "")


@every_script
def test_ctrl_c_in_the_untrained_epoch_ends_in_one_line(script, argv, tmp_path, monkeypatch,
                                                        capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "run_epoch", interrupt)
    with pytest.raises(SystemExit) as stop:
        script.exit_with(lambda: script.main([*argv, "--epochs", "3", "--out", str(tmp_path)]))
    assert stop.value.code == 130
    assert capsys.readouterr().out.splitlines()[-1] == "stopped"


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, "from a import b" as both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_requirements_cover_the_imports_and_nothing_else():
    own = {path.stem for path in CODE.glob("*.py")}
    used = {name.split(".")[0] for path in CODE.rglob("*.py") for name in imports(path)}
    used = {"pillow" if name == "PIL" else name for name in used - own - sys.stdlib_module_names}
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    listed = {re.match(r"[\w-]+", line)[0] for line in lines if line[:1].isalpha()}
    assert listed - {"ruff"} == used  # ruff is a command


def test_only_tests_use_the_forbidden_distributions():
    for path in CODE.glob("*.py"):
        assert not any(name.startswith("torch.distributions") for name in imports(path)), path
        assert not any(isinstance(node, ast.Attribute) and node.attr == "distributions"
                       for node in ast.walk(ast.parse(path.read_text()))), path


def test_code_is_no_package():
    assert not (CODE / "__init__.py").exists(), "it would shadow the standard library's code"


def readme_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()
            if line.split("#")[0].strip()]


def test_the_commands_of_the_readme_exist():
    scripts = {f"code/{script.__name__}.py": script for script, _ in [*SCRIPTS, GAN]}
    targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    commands = [shlex.split(command) for command in readme_commands()]
    assert len(commands) >= 4
    for command in commands:
        if command[0] == "make":
            assert command[1] in targets, command
        elif "python" in command[0]:
            assert (REPOSITORY / command[1]).exists(), command
            if command[1] in scripts:
                scripts[command[1]].parse_args(command[2:])
        else:
            assert command[0] in {"git", "cd", "export"}, command


def test_every_number_of_the_readme_is_that_of_its_results_file():
    """A number is followed by where it is from: 95.09<!-- vae-z20.val_elbo_nats -->."""
    text = (REPOSITORY / "README.md").read_text()
    claims = re.findall(r"(-?[\d.,]+)<!-- ([\w-]+)\.([\w.]+) -->", text)
    assert len(claims) >= 8
    for shown, file, keys in claims:
        value = json.loads((REPOSITORY / "report/results" / f"{file}.json").read_text())
        for key in keys.split("."):
            value = value[int(key) if isinstance(value, list) else key]
        decimals = len(shown.partition(".")[2])
        assert shown == f"{value:,.{decimals}f}", (file, keys, shown, value)
    for row in re.findall(r"^\|.*<!--.*\|$", text, re.MULTILINE):
        cells = row.split("|", 2)[2]  # a case of the study may be called "beta 0.25"
        bare = re.sub(r"-?[\d.,]+<!--.*?-->", "", cells)
        assert not re.search(r"\d+\.\d", bare), f"a number without its source: {bare}"


def test_the_benchmark_divides_the_epoch_by_its_floor(monkeypatch):
    clock = iter([3.0, 1.0] * 5)
    monkeypatch.setattr(benchmark, "seconds", lambda work, device: next(clock))
    images, source = torch.zeros(10, 784), Source("sample", "", "")
    row = benchmark.compare(lambda: None, lambda: None, Split(images, source, batch_size=4), 5,
                            "cpu")
    assert row["epoch_seconds"] == 3.0
    assert row["floor_seconds"] == 1.0 * 10 / 8, "two full batches of four stand for ten images"
    assert row["ratio"] == 3.0 / 1.25


def test_the_benchmark_counts_the_products_of_one_update():
    """Two layers on data: 3 x 2 m n B operations each, less the first one's input gradient."""
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    floor = benchmark.matrix_products(model, {model[0]}, 11, torch.float32)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        floor()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as update:
        model(torch.randn(11, 5)).sum().backward()
    expected = 2 * 11 * (2 * 5 * 7 + 3 * 7 * 3)
    assert counter.get_total_flops() == update.get_total_flops() == expected


def test_the_benchmark_counts_the_products_of_one_update_of_the_gan():
    args = gan.parse_args(["--recipe", "template"])
    parts = gan.networks(args, "cpu", updates=1)
    x, z = torch.rand(8, 784), torch.randn(8, args.latent_dim)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as floor:
        benchmark.gan_products(parts["generator"], parts["discriminator"], 8)()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as update:
        gan.update(x, z, **parts, loss="nonsaturating")
    assert floor.get_total_flops() == update.get_total_flops()
