"""Every script on GPUs that are not there (fake_device.py): trained, stopped, resumed, judged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.optim.swa_utils import update_bn

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import datasets
import evaluate
import nf_multiscale
import sample
import vae_variants
import walks
from a3 import figures, judge_metrics, judge_trained, nf_figures, vae_figures, vae_monitors
from a3.runs import Interrupted
from fake_device import machine_with
from helpers import SMALL_FLOW
from made_up import own_arrays

SMALL = ["--dataset", "mnist", "--epochs", "1", "--batch_size", "16"]
TINY_VAE = ["--hidden_dim", "8", "--nll_samples", "3"]
# By how evaluate.py calls the model: script, the module whose loop it trains by, flags.
SCRIPTS = {
    "vae": (vae, vae, ["--zdim", "2", "--epochs", "2", *TINY_VAE]),
    "vae_best": (vae_variants, vae, ["--zdim", "3", *TINY_VAE, "--prior", "flow", "--posterior",
                                     "flow", "--shift", "1", "--objective", "iwae",
                                     "--importance_samples", "2"]),
    "nf": (nf, nf, ["--n_flows", "1", "--n_hidden", "8", "--iw_samples", "2"]),
    "nf_multiscale": (nf_multiscale, nf, []),
    "gan": (gan, gan, ["--latent_dim", "4", "--loss", "wasserstein"]),
}


def few_for_statistics(batches, network: nn.Module) -> None:
    """Give a network the batch statistics of a few codes, not of ten thousand."""
    update_bn([batches[0][:30]], network)


@pytest.fixture(scope="module", params=["cuda", "mps"])
def machine(request):
    """Play a machine with a GPU and a few made-up digits, and keep the work small."""
    arrays = own_arrays(32, 40)
    images, labels = ([torch.from_numpy(arrays[f"{split}{kind}"]) for split in
                       ("train", "test", "test")] for kind in ("", "_labels"))
    digits = tuple(part.flatten(1) for part in images), tuple(part.long() for part in labels)
    with pytest.MonkeyPatch.context() as patch, machine_with(request.param):
        patch.setattr(datasets, "mnist_files", lambda root, download: (*digits, "made-up digits"))
        patch.setattr(Figure, "savefig", lambda *_, **__: None)  # only the drawing's data matters
        for module, name, value in (
                (figures, "ZOOM", 1), (vae_figures, "MANIFOLD_SIDE", 3),
                (vae_monitors, "EXAMINED_CODES", 8), (judge_metrics, "SUBSETS", 2),
                (gan, "EVALUATION_SAMPLES", 30), (gan, "update_bn", few_for_statistics),
                (nf_figures, "TEMPERATURES", (0.5,)), (walks, "PATH_DRAWS", 2),
                *((nf_multiscale, *size) for size in SMALL_FLOW.items()),
                (nf_multiscale, "ROUND_TRIPS", 4), (judge_trained, "TIMED_SAMPLES", 10),
                (evaluate, "MEMORY_SAMPLES", 12)):
            patch.setattr(module, name, value)
        yield request.param


@pytest.fixture(scope="module")
def trained(machine, tmp_path_factory):
    """Return a function that trains a script once, stopped and resumed; returns run and folder."""
    out, runs = tmp_path_factory.mktemp(machine), {}

    def train(name: str) -> tuple[str, Path]:
        if name not in runs:
            before = {*out.glob("results/*.json")}
            run(name, out, stop=True)
            run(name, out, "--resume")
            (new,) = {*out.glob("results/*.json")} - before
            runs[name] = new.stem
        return runs[name], out

    return train


def run(name: str, out: Path, *more: str, stop: bool = False) -> dict | None:
    """Run a script on the GPU that --device auto finds; stop it before its last epoch."""
    script, loop, own = SCRIPTS[name]
    argv = [*SMALL, *own, "--out", str(out), *more]
    if not stop:
        return script.main(argv)
    whole, done = loop.run_epoch, []

    def run_epoch(*args, **kwargs):
        if len(done) == script.parse_args(argv).epochs:
            raise KeyboardInterrupt
        done.append(1)
        return whole(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "run_epoch", run_epoch)
        script.main(argv)
    return None


# The rules ---------------------------------------------------------------------------------------

def test_the_device_refuses_what_the_real_one_does(machine):
    x, here = torch.zeros(3, 784, device=machine), torch.ones(3, 784)
    layer = nn.Linear(784, 2).to(machine)
    assert x.device.type == machine and (x + 1).device.type == machine
    assert all(part.device.type == machine for part in layer.parameters())
    layer(x).sum().backward()
    assert layer.weight.grad.device.type == machine
    own = torch.Generator()
    for wrong in (lambda: x + here, lambda: layer(here), lambda: torch.stack((x, here)),
                  lambda: x.gather(1, torch.zeros(3, 1, dtype=torch.long)),
                  lambda: here[torch.zeros(2, dtype=torch.long, device=machine)],
                  lambda: x.index_copy(1, torch.arange(784, device=machine), here)):
        with pytest.raises(RuntimeError, match="on the same device"):
            wrong()
    for wrong in (lambda: torch.randn(2, generator=own, device=machine),
                  lambda: x.normal_(generator=own)):
        with pytest.raises(RuntimeError, match="for generator but found 'cpu'"):
            wrong()
    for wrong in (x.numpy, lambda: np.asarray(x)):
        with pytest.raises(TypeError, match="to numpy. Use Tensor.cpu"):
            wrong()
    assert torch.equal(x.cpu(), torch.zeros(3, 784)) and x.sum().item() == 0
    assert x[torch.tensor([0, 2])].shape == (2, 784) and (x + torch.tensor(2.0)).sum() > 0
    if machine == "cuda":
        assert x.double().dtype == torch.float64
        return
    for wrong in (x.double, lambda: x.to(torch.float64), lambda: here.double().to(machine),
                  lambda: torch.zeros(3, dtype=torch.float64, device=machine),
                  lambda: x.sum(dtype=torch.float64)):
        with pytest.raises(TypeError, match="MPS framework doesn't support float64"):
            wrong()


def test_the_device_draws_from_random_numbers_of_its_own(machine):
    torch.manual_seed(3)
    here = torch.get_rng_state()
    one = torch.rand(4, device=machine).cpu(), torch.nn.functional.dropout(
        torch.ones(50, device=machine)).cpu()
    assert torch.equal(here, torch.get_rng_state())
    torch.manual_seed(3)
    state = getattr(torch, machine).get_rng_state()
    assert torch.equal(torch.rand(4, device=machine).cpu(), one[0])
    getattr(torch, machine).set_rng_state(state)
    assert torch.equal(torch.rand_like(torch.zeros(4, device=machine)).cpu(), one[0])


# The scripts -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_trains_on_the_device_is_stopped_and_goes_on(name, trained, machine):
    run, out = trained(name)
    record = json.loads((out / "results" / f"{run}.json").read_text())
    assert record["device"].startswith(machine)
    assert record["precision"] == {"cuda": "bfloat16", "mps": "float32"}[machine]  # of auto


def test_what_the_device_draws_goes_on_where_it_was(trained, tmp_path):
    """A training without a stop ends with the same weights."""
    stopped, out = trained("vae")
    whole = run("vae", tmp_path)
    record = json.loads((out / "results" / f"{stopped}.json").read_text())
    assert whole["weights_sha256"] == record["weights_sha256"]


def test_the_runs_are_compared_on_the_device(trained, machine):
    flows = ["nf", "nf_multiscale"] if machine == "mps" else []  # where the rules are stricter
    models = ["vae", "gan", *flows]
    runs = [trained(name) for name in models]
    flags = [part for name, (run, _) in zip(models, runs, strict=True)
             for part in (f"--{name}", run)]
    table = evaluate.main([*flags, "--models", *models, "--dataset", "mnist", "--samples", "12",
                           "--repeats", "1", "--nll_samples", "2", "--iw_samples", "2", "--out",
                           str(runs[0][1])])
    assert all(table[name]["frechet_distance"] > 0 for name in models)


def test_codes_are_walked_on_the_device(trained):
    run, out = trained("vae_best")
    walks.main([run, "--out", str(out)])


@pytest.mark.parametrize("name", SCRIPTS)
def test_samples_are_the_same_from_the_device_and_from_the_cpu(name, trained, machine):
    run, out = trained(name)
    images = []
    for device in (machine, "cpu"):
        file = sample.main([run, "--n", "4", "--npz", "--device", device, "--out", str(out)])
        images.append(np.load(file.with_suffix(".npz"))["images"])
    assert np.array_equal(*images)
