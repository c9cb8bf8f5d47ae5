"""Draws from runs of every script, and from their committed weights alone."""

import hashlib
import json
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import evaluate
import nf_multiscale
import sample
import vae_variants
import walks
from a3 import checkpoints, figures, judge_classifier
from a3.figures import GAP_PX
from a3.runs import RunError
from helpers import SMALL_FLOW
from made_up import own_arrays, own_files

FULL_FLOW = {name: getattr(nf_multiscale, name) for name in SMALL_FLOW}
TINY = ["--limit", "64", "--epochs", "1", "--device", "cpu"]
SMALL_VAE = ["--hidden_dim", "16", "--nll_samples", "2"]
# How names of runs begin, as sample.py knows them; script and flags.
SCRIPTS = {
    "vae-z3": (vae, ["--zdim", "3", *SMALL_VAE]),
    "vae-variant": (vae_variants, ["--zdim", "3", *SMALL_VAE, "--likelihood", "gaussian",
                                   "--prior", "flow", "--posterior", "flow"]),
    "nf-from": (nf, ["--n_flows", "1", "--n_hidden", "8", "--iw_samples", "1"]),
    "nf-multiscale": (nf_multiscale, []),
    "gan": (gan, ["--latent_dim", "8"]),
}
every_kind = pytest.mark.parametrize("kind", SCRIPTS)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Let the networks without flags of their size be small, and judge few samples."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
                (figures, "ZOOM", 1), (judge_classifier, "EPOCHS", 1),
                (gan, "EVALUATION_SAMPLES", 200), (nf_multiscale, "ROUND_TRIPS", 5),
                *((nf_multiscale, *size) for size in SMALL_FLOW.items())):
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """Train each script for an instant, on files like Fashion-MNIST's.

    Returns:
        the folder, and the runs by kind.
    """
    out = tmp_path_factory.mktemp("runs")
    images = own_files(out / "fashion", own_arrays())
    for script, own in SCRIPTS.values():
        script.main([*TINY, *own, "--out", str(out), "--dataset", str(images)])
    names = {path.stem for path in (out / "results").glob("*.json")}
    runs = {kind: [name for name in names if name.startswith(kind)] for kind in SCRIPTS}
    assert len(names) == len(SCRIPTS), names
    return out, {kind: name for kind, (name,) in runs.items()}


def drawn(run: str, out: Path, *more: str) -> tuple[np.ndarray, Path]:
    """Draw four samples; return the pixels of the grid, and its file."""
    file = sample.main([run, "--n", "4", "--device", "cpu", "--out", str(out), *more])
    return np.asarray(Image.open(file)), file


@every_kind
def test_the_grid_shows_the_arrays_and_the_seed_decides_both(kind, trained):
    out, runs = trained
    grid, file = drawn(runs[kind], out, "--npz")
    assert file == out / "figures" / f"{runs[kind]}-drawn-n4.png"
    arrays = np.load(file.with_suffix(".npz"))
    codes, images = arrays["codes"], arrays["images"]
    assert images.shape == (4, 28, 28) and len(codes) == 4 and images.dtype == np.float32
    step = 28 + GAP_PX
    for i, image in enumerate(images):
        top, left = GAP_PX + i // 2 * step, GAP_PX + i % 2 * step
        assert (grid[top:top + 28, left:left + 28] == np.rint(255 * image.clip(0, 1))).all()
    again, same = drawn(runs[kind], out)
    other, apart = drawn(runs[kind], out, "--seed", "1")
    assert same == file and (again == grid).all()
    assert apart != file and (other != grid).any()


@every_kind
def test_the_temperature_is_the_deviation_of_the_codes(kind, trained):
    out, runs = trained
    _, usual = drawn(runs[kind], out, "--npz")
    _, cold = drawn(runs[kind], out, "--npz", "--temperature", "0.5")
    _, none = drawn(runs[kind], out, "--npz", "--temperature", "0")
    usual, cold, none = (np.load(file.with_suffix(".npz")) for file in (usual, cold, none))
    assert np.allclose(cold["codes"], 0.5 * usual["codes"])
    assert (none["images"] == none["images"][0]).all() and not none["codes"].any()
    assert (usual["images"][0] != usual["images"][1]).any()


@every_kind
def test_codes_are_decoded_by_the_runs_own_model(kind, trained):
    """The checkpoint of each kind, by the model's class alone."""
    out, runs = trained
    state = checkpoints.read(out / "checkpoints" / runs[kind] / "last.pt")
    flags, weights = state["flags"], state["kept"]["model"]
    script = SCRIPTS[kind][0]
    if script is gan:
        model = gan.GAN(8, recipe="default")
        model.load_state_dict(weights)
        network = model.sampler(42)
    else:
        network = {vae: lambda: vae.VAE(16, 3), vae_variants: lambda: vae_variants.build(flags),
                   nf: lambda: nf.Model(n_flows=1, n_hidden=8),
                   nf_multiscale: nf_multiscale.Model}[script]()
        network.load_state_dict({key: value for key, value in weights.items()
                                 if key in network.state_dict()})
    network.eval()
    _, file = drawn(runs[kind], out, "--npz")
    arrays = np.load(file.with_suffix(".npz"))
    with torch.no_grad():
        images = network.decode(torch.from_numpy(arrays["codes"]))
    scale = {gan: lambda x: (x + 1) / 2, nf: lambda x: x / 255,
             nf_multiscale: lambda x: x / 255}.get(script, lambda x: x)
    assert torch.allclose(scale(images), torch.from_numpy(arrays["images"]).flatten(1), atol=1e-5)


# One's own images --------------------------------------------------------------------------------

@every_kind
def test_runs_on_ones_own_images_are_named_apart(kind, trained):
    out, runs = trained
    record = json.loads((out / "results" / f"{runs[kind]}.json").read_text())
    name = record["data"]["name"]
    assert re.fullmatch("from-fashion-[0-9a-f]{6}", name) and f"-{name}-" in runs[kind]
    assert record["data"]["sha256"][:6] == name[-6:]
    figures = {path.name.removeprefix(f"{runs[kind]}-") for path in (out / "figures").iterdir()}
    assert ("interpolation.png" in figures) == kind.startswith("nf"), "it needs labels, or a judge"
    assert not any("frechet" in key for key in record), "the judges know MNIST's digits alone"
    assert not list(out.glob("checkpoints/*.pt")), "and none is made for other images"


@pytest.mark.parametrize("kind", ["vae-z2", "nf-from", "gan"])
def test_without_labels_what_needs_them_is_left_out_with_a_line(kind, tmp_path, capsys):
    arrays = {key: value for key, value in own_arrays().items() if "labels" not in key}
    np.savez(tmp_path / "mnist.npz", **arrays)
    script, own = {"vae-z2": (vae, ["--zdim", "2", *SMALL_VAE])}.get(kind) or SCRIPTS[kind]
    results = script.main([*TINY, *own, "--out", str(tmp_path), "--dataset",
                           str(tmp_path / "mnist.npz")])
    assert ("note: without labels (there are none), figures and numbers that need them are left "
            "out\n") in capsys.readouterr().out
    (file,) = (tmp_path / "results").glob("*.json")
    assert re.match(f"({kind}|nf|gan)-from-mnist-", file.stem), "no number of MNIST"
    drawn = {path.name.removeprefix(f"{file.stem}-") for path in tmp_path.glob("figures/*")}
    assert not drawn & {"interpolation.png", "codes.pdf"} and "samples-end.png" in drawn, drawn
    assert not any("frechet" in key or "classifier" in key for key in results)
    assert drawn & {"temperatures.png", "chain.png", "manifold-end.png"}, drawn


def test_a_run_on_ones_own_images_is_examined_on_them(trained, monkeypatch):
    out, runs = trained
    seen = []
    monkeypatch.setattr(walks, "draw_walks", lambda model, digits, *_: seen.append(digits) or {})
    walks.main([runs["vae-z3"], "--device", "cpu", "--out", str(out)])
    (digits,) = seen
    assert f"-{digits.source.name}-" in runs["vae-z3"] and len(digits.images) == 40


def test_images_without_labels_are_not_compared(tmp_path, monkeypatch):
    arrays = {key: value for key, value in own_arrays().items() if "labels" not in key}
    folder = own_files(tmp_path / "mine", arrays)
    monkeypatch.setattr(evaluate, "load_models", lambda *_: {})
    with pytest.raises(RunError, match="mine': the judges know MNIST's digits alone"):
        evaluate.main(["--device", "cpu", "--dataset", str(folder), "--out", str(tmp_path)])


# Weights -----------------------------------------------------------------------------------------

@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """The folder of committed weights, empty, and no run in the repository."""
    monkeypatch.setattr(sample, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(sample, "REPOSITORY", tmp_path)
    return tmp_path / "weights"


@every_kind
def test_weights_alone_draw_what_the_checkpoint_does_but_for_their_16_bits(
        kind, trained, weights, tmp_path, capsys):
    out, runs = trained
    run = runs[kind]
    file = sample.main([run, "--export", "--device", "cpu", "--out", str(out)])
    assert file == weights / f"{run}.pt"
    args = Namespace(run=run, out=out, device="cpu", export=False)
    full = sample.load(args).network.state_dict()
    capsys.readouterr()
    args.out = tmp_path / "fresh"
    small = sample.load(args).network
    assert f"weights: {file}, 16 bits each" in capsys.readouterr().out
    assert not small.training
    for name, value in small.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            assert torch.equal(value, full[name].bfloat16().float()), name
    parts = [small] if kind != "gan" else [small, gan.GAN(8, recipe="default").discriminator]
    number = sum(value.numel() for part in parts for value in sample.floats(part))
    assert file.stat().st_size < 2 * number + 20_000, "16 bits each, and 16 small images"
    first = drawn(run, tmp_path / "fresh", "--npz")[1]
    assert first.parent == tmp_path / "fresh/figures"
    readme = (weights / "README.md").read_text()
    record = json.loads((out / "results" / f"{run}.json").read_text())
    stored = checkpoints.load(file)
    assert stored["weights_sha256"] == record["weights_sha256"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() in readme
    assert f"report/results/{run}.json | `code/sample.py {run} --export`" in readme


def test_a_gan_is_exported_with_its_discriminator(trained, weights):
    out, runs = trained
    file = sample.main([runs["gan"], "--export", "--device", "cpu", "--out", str(out)])
    state = checkpoints.read(out / "checkpoints" / runs["gan"] / "last.pt")
    packed = gan.GAN(8, recipe="default").discriminator.requires_grad_(False)
    sample.unpack(checkpoints.load(file)["discriminator"], packed)
    for name, value in packed.state_dict().items():
        full = state["kept"]["model"][f"discriminator.{name}"]
        assert torch.equal(value, full.bfloat16().float()), name


def check_weights(file: Path, readme: str, results: Path) -> None:
    """Raise unless a file of weights is the one listed, and draws the images that it remembers."""
    assert f"| {file.name} |" in readme and file.name == f"{results.stem}.pt"
    assert hashlib.sha256(file.read_bytes()).hexdigest() in readme, f"{file} is not as listed"
    stored, record = checkpoints.load(file), json.loads(results.read_text())
    assert stored["weights_sha256"] == record["weights_sha256"], f"export {file.stem} again"
    trained = sample.load(Namespace(run=file.stem, out=None, device="cpu", export=False))
    _, images = sample.draw(trained, sample.REMEMBERED, 0, 1.0, "cpu")
    apart = (255 * images).round() - stored["images"].float()
    alike = (apart.abs() <= 1).all(dim=1).sum()  # machines round differently
    assert alike >= sample.REMEMBERED - 2, f"{file.stem}: only {alike} images are as they were"


def test_other_weights_than_those_listed_are_noticed(trained, weights):
    out, runs = trained
    file = sample.main([runs["vae-z3"], "--export", "--device", "cpu", "--out", str(out)])
    readme, results = weights / "README.md", out / "results" / f"{file.stem}.json"
    check_weights(file, readme.read_text(), results)
    readme.write_text("# Mine\n\n" + readme.read_text() + "\nAlso mine.\n")
    stored = checkpoints.load(file)
    checkpoints.save({**stored, "images": 255 - stored["images"]}, file)
    with pytest.raises(AssertionError, match="is not as listed"):
        check_weights(file, readme.read_text(), results)
    sample.list_weights()
    text = readme.read_text()
    assert text.startswith("# Mine\n") and text.endswith("\nAlso mine.\n"), text
    assert text.count(f"| {file.name} |") == 1
    with pytest.raises(AssertionError, match="only 0 images are as they were"):
        check_weights(file, text, results)


def test_the_committed_weights_are_those_listed_and_draw_the_same_images_here(monkeypatch):
    files = sample.exported()
    if not files:
        pytest.skip("no weights are committed yet")
    report, readme = sample.REPOSITORY / "report", (sample.WEIGHTS / "README.md").read_text()
    monkeypatch.setattr(sample, "REPOSITORY", Path("/nonexistent"))
    for name, value in FULL_FLOW.items():
        monkeypatch.setattr(nf_multiscale, name, value)
    assert sum(file.stat().st_size for file in files) < 10e6
    for file in files:
        check_weights(file, readme, report / "results" / f"{file.stem}.json")


# Refusals ----------------------------------------------------------------------------------------

def refusal(*argv: str) -> str:
    with pytest.raises(RunError) as refused:
        sample.main([*argv, "--device", "cpu"])
    assert "\n" not in str(refused.value), "one line"
    return str(refused.value)


def test_a_run_that_is_nowhere_is_told_with_those_that_are(trained, weights, tmp_path):
    out, runs = trained
    told = refusal("vae-z9", "--out", str(out))
    assert re.search(r"no trained run 'vae-z9' under '.*checkpoints'; train it", told), told
    assert all(run in told for run in runs.values()), told
    assert "there is none yet" in refusal("gan", "--out", str(tmp_path / "empty"))
    assert "names begin with nf-multiscale, nf, gan, vae" in refusal("resnet")
    assert not weights.exists() and not (tmp_path / "empty").exists()


def test_weights_are_not_exported_from_weights(trained, weights, tmp_path):
    out, runs = trained
    sample.main([runs["nf-from"], "--export", "--device", "cpu", "--out", str(out)])
    fresh = str(tmp_path / "fresh")
    assert "no trained run" in refusal(runs["nf-from"], "--export", "--out", fresh)


def test_damaged_weights_are_refused(trained, weights, tmp_path):
    weights.mkdir()
    (weights / "gan.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    assert "gan.pt' cannot be read" in refusal("gan", "--out", str(tmp_path / "fresh"))


@pytest.mark.parametrize("wrong", [("--n", "0"), ("--temperature", "-1"), ("--temperature", "nan"),
                                   ("--seed", "-1")])
def test_what_cannot_be_drawn_is_refused(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        sample.parse_args([*wrong])
    assert stop.value.code == 2 and f"argument {wrong[0]}: " in capsys.readouterr().err
