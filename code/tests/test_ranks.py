"""Several ranks train as one process does, and of a lost one nothing else is lost.

Ranks are started by torchrun's own engine. For comparisons all noise is made a function of the
image that it is for, so that it is the same on one rank and on two.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import signal
import tempfile
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from tqdm import tqdm

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import datasets
import study
import vae_variants
from a3 import cli, figures, judge_classifier, ranks, vae_objectives
from a3.speed import Dropout
from datasets import RandomShift
from made_up import grey, seeded

# 93 images in batches of 30: the shares of the last batch, 2 and 1 images, are not equal.
SMALL = ["--dataset", "sample", "--limit", "93", "--device", "cpu", "--batch_size", "30",
         "--epochs", "3", "--precision", "float32"]
# A script, the module whose loop it trains by, and flags.
SCRIPTS = {  # free bits of a dimension stand in a maximum over the whole batch's mean
    "vae": (vae_variants, vae, [*SMALL, "--hidden_dim", "20", "--nll_samples", "2", "--prior",
                                "flow", "--objective", "free_bits", "--free_bits", "0.02",
                                "--per_dimension"]),
    "nf": (nf, nf, [*SMALL, "--n_flows", "1", "--n_hidden", "16", "--iw_samples", "1"]),
    "gan": (gan, gan, [*SMALL, "--latent_dim", "8", "--limit", "96",
                        "--batch_size", "32"])}  # shares of a whole group of D's deviation
# What depends on the moment, the machine and the number of ranks.
FACTS = {"epoch_seconds", "train_seconds", "date", "device", "ranks", "begun_on",
         "classifier_sha256", "weights_sha256", "evaluated"}


def uniform(x: Tensor, number: int) -> Tensor:
    """Return numbers in (0, 1), (B, number), that follow from the images x (B, 784) alone."""
    weights = torch.randn(x.shape[1], number, generator=torch.Generator().manual_seed(1))
    return (100 * (x.double() @ weights.double())).frac().abs().clamp(1e-3, 1 - 1e-3).float()


def normal(x: Tensor, number: int) -> Tensor:
    return math.sqrt(2) * torch.erfinv(2 * uniform(x, number) - 1)


def made_up_digits(root: Path, download: bool) -> tuple:
    """Return few images in the place of the sample's: reading those takes seconds."""
    parts = [grey(200).images[start::2] for start in (0, 1, 0)]
    return (grey(120).images, *parts[1:]), tuple(
        torch.arange(number) % 10 for number in (120, 100, 100)), "made up"


def fix_noise(patch: pytest.MonkeyPatch) -> None:
    """Make all noise of training a function of the image; draw and judge little."""
    patch.setattr(datasets, "sample_digits", made_up_digits)
    elbo_terms, dequantize, update = vae.VAE.elbo_terms, nf.Model.dequantize, gan.update
    patch.setattr(vae.VAE, "elbo_terms", lambda self, x, eps=None: elbo_terms(
        self, x, normal(x, self.z_dim) if eps is None else eps))
    patch.setattr(vae_objectives, "noise", lambda model, x: normal(x, model.z_dim))
    patch.setattr(Dropout, "forward", lambda self, x: x if not self.training else (
        x * (uniform(x, x.shape[1]) >= self.p) / (1 - self.p)))
    patch.setattr(nf.Model, "dequantize", lambda self, z, noise=None: (
        z + uniform(z, 784) if noise is None else dequantize(self, z, noise)))
    patch.setattr(gan, "update", lambda x, z, *rest: update(x, normal(x, z.shape[1]), *rest))
    shift = RandomShift.forward
    patch.setattr(RandomShift, "forward", lambda self, x, generator=None: (
        x if generator is None else shift(self, x, generator)))
    patch.setattr(figures, "ZOOM", 1)
    patch.setattr(Figure, "savefig", lambda *_, **__: None)
    patch.setattr(judge_classifier, "EPOCHS", 1)
    patch.setattr(gan, "EVALUATION_SAMPLES", 500)
    patch.setattr(gan.GAN, "sampler", lambda self, seed: self.average.module)


def train(name: str, out: str, dies_in: int | None = None) -> None:
    """Train as a rank; rank 1 is killed in an epoch, unless it has been started again."""
    script, loop, argv = SCRIPTS[name]
    signal.alarm(240)  # ends what would wait for ever
    tempfile.tempdir = str(Path(out).parent)
    tqdm.set_lock(threading.RLock())  # one between processes would outlive the killed one
    original, calls = loop.run_epoch, []

    def run_epoch(*args, **kwargs):
        calls.append(1)
        if (len(calls) - 1, ranks.rank()) == (dies_in, 1) and (
                os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        fix_noise(patch)
        patch.setattr(loop, "run_epoch", run_epoch)
        cli.exit_with(lambda: script.main([*argv, "--out", out]))


def launch(logs: Path, *arguments, restarts: int = 0) -> dict[str, str]:
    """Start two ranks; return what each printed, by attempt, rank and stream: "0/1/stderr"."""
    multiprocessing.set_forkserver_preload(["torch._dynamo", "scipy.stats", "torchvision",
                                            "mlxtend.data", "matplotlib.figure", "pytest",
                                            "torch.distributed.launcher.api"])
    logs.mkdir()
    config = LaunchConfig(1, 1, 2, start_method="forkserver", max_restarts=restarts,
                          monitor_interval=0.1, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
                          logs_specs=DefaultLogsSpecs(str(logs), redirects=Std.ALL))
    handlers = {number: signal.getsignal(number) for number in (
        signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    elastic_launch(config, train)(*arguments)
    for number, handler in handlers.items():  # torchrun's would stay
        signal.signal(number, handler)
    return {re.search(r"attempt_(\d/\d/\w+)\.log$", str(file))[1]: file.read_text()
            for file in logs.rglob("*.log")}


def curve(out: Path) -> list[dict[str, float]]:
    (checkpoint,) = out.glob("checkpoints/*/last.pt")
    history = torch.load(checkpoint, weights_only=True)["history"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def results(out: Path) -> dict:
    (file,) = out.glob("results/*.json")
    return {key: value for key, value in json.loads(file.read_text()).items()
            if key not in FACTS}


def assert_close(one, two, tolerance: float) -> None:
    """Compare numbers, and whatever holds them."""
    if isinstance(one, dict | list):
        assert len(one) == len(two) and type(one) is type(two), (one, two)
        for key in one if isinstance(one, dict) else range(len(one)):
            assert_close(one[key], two[key], tolerance)
    else:
        assert one == (pytest.approx(two, rel=tolerance, abs=tolerance)
                       if isinstance(one, float) else two)


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(),
                    reason="needs processes that start by a fork")
@pytest.mark.parametrize(("name", "dies_in", "tolerance"), [
    ("vae", 2, 1e-5), ("nf", None, 1e-5), ("gan", None, 1e-4)])
def test_two_ranks_train_as_one_process_does_even_if_one_is_killed(name, dies_in, tolerance,
                                                                   tmp_path):
    """Torchrun starts both again after the loss, and they go on from the last whole epoch."""
    lost = dies_in is not None
    printed = launch(tmp_path / "logs", name, str(tmp_path / "two"), dies_in, restarts=int(lost))
    script, _, argv = SCRIPTS[name]
    with pytest.MonkeyPatch.context() as patch:
        fix_noise(patch)
        script.main([*argv, "--out", str(tmp_path / "one")])
    one, two = (tmp_path / folder for folder in ("one", "two"))
    assert_close(curve(one), curve(two), tolerance)
    assert_close(results(one), results(two), 1e-3)
    names = [sorted(file.relative_to(out) for file in out.rglob("*.*")) for out in (one, two)]
    assert names[0] == names[1]
    told = "".join(text for stream, text in printed.items() if stream.startswith("0/"))
    (error,) = re.findall("^error: .*", told, re.MULTILINE) if lost else ("",)
    last = printed[f"{int(lost)}/0/stdout"]
    assert (("lost" in error or "told to end" in error) and "--resume" in error) or not lost, error
    # The other rank may still be writing the last epoch when it hears of the loss.
    assert bool(re.search("^resumed after epoch [01]$", last, re.MULTILINE)) == lost, last
    assert last.count("done: ") == 1 and "2 ranks" in last
    assert not any(text for stream, text in printed.items()
                   if "1/stdout" in stream or ("stderr" in stream and "error: " not in text))


@pytest.fixture
def of_three(monkeypatch):
    """Return a function that computes something on each of three ranks, one after the other.

    What is summed is the same on all of them in these tests but for the shares.
    """
    def run(work) -> list:
        found = []
        for number in range(3):
            monkeypatch.setattr(ranks, "_size", 3)
            monkeypatch.setattr(ranks, "_rank", number)
            found.append(work())
        return found
    return run


@pytest.mark.parametrize("images", [1, 2, 3, 7, 9, 128])
def test_a_batch_is_shared_whole_and_once_by_weights_that_sum_to_one(images, of_three):
    batch = torch.arange(float(images))
    parts = of_three(lambda: (ranks.share(batch), ranks._weight))
    assert math.isclose(sum(weight for _, weight in parts), 1.0)
    mean = sum(weight * part.mean() for part, weight in parts)
    assert math.isclose(mean, batch.mean(), rel_tol=1e-6), (mean, batch.mean())
    if images >= 3:
        assert torch.equal(torch.cat([part for part, _ in parts]), batch)
    with torch.no_grad():  # an evaluation
        assert all(torch.equal(part, batch) for part in of_three(lambda: ranks.share(batch)))


@pytest.mark.parametrize("images", [1, 2, 3, 4, 11])
def test_the_gradients_of_the_ranks_add_up_to_that_of_the_whole_batch(images, of_three,
                                                                      monkeypatch):
    """Each rank's loss is the mean over its own images."""
    x = torch.randn(images, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    monkeypatch.setattr(ranks, "total", lambda values: values)

    def gradient() -> Tensor:
        layer = seeded(nn.Linear, 5, 1).double()
        ranks.train_together(layer)
        layer(ranks.share(x)).square().mean().backward()
        return layer.weight.grad

    parts = of_three(gradient)
    monkeypatch.setattr(ranks, "_size", 1)
    monkeypatch.setattr(ranks, "_rank", 0)
    assert torch.allclose(sum(parts), gradient()), (parts, gradient())


@pytest.mark.parametrize(("given", "threads"), [("1", 2), ("3", None), ("", None)])
def test_the_ranks_of_a_machine_share_its_cores(given, threads, monkeypatch):
    """Torchrun sets OMP_NUM_THREADS to 1 where the user has not; anything else is the user's."""
    for name, value in (("_rank", 0), ("_size", 1), ("_store", None), ("usable_cores", lambda: 8)):
        monkeypatch.setattr(ranks, name, value)
    for name, value in (("OMP_NUM_THREADS", given), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(ranks.dist, "rendezvous", lambda _: iter([(dist.HashStore(), 0, 4)]))
    monkeypatch.setattr(ranks, "_meeting", lambda store: "here")
    monkeypatch.setattr(ranks.signal, "signal", lambda *_: None)
    ranks._join()
    assert (ranks.size(), told) == (4, [threads] if threads else [])
    ranks.leave()
    assert (ranks.size(), told[-1]) == (1, 2 * 4), "rank 0 goes on alone, on all of them"


def test_a_rank_takes_the_gpu_of_its_number_on_its_machine(monkeypatch):
    monkeypatch.setattr(ranks, "_store", object())
    monkeypatch.setenv("LOCAL_RANK", "1")
    for count, name in ((2, "cuda"), (2, "auto"), (1, "auto"), (2, "cuda:0")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        if count == 1:
            with pytest.raises(argparse.ArgumentTypeError, match="'cuda:1' is not here"):
                cli.device_name(name)
        else:
            assert cli.device_name(name) == ("cuda:0" if ":" in name else "cuda:1")
    assert cli.device_name("cpu") == "cpu"


def test_only_trainings_run_on_several_ranks(monkeypatch, capsys):
    monkeypatch.setattr(ranks, "_size", 2)
    assert vae.parse_args(["--device", "cpu"]).epochs == vae.EPOCHS
    with pytest.raises(SystemExit):
        study.parse_args(["--device", "cpu"])
    assert "only a training runs on several ranks" in capsys.readouterr().err


@pytest.mark.parametrize(("begun", "restarts", "goes_on"), [
    (["7", "here 5 99"], 0, True), (["7", "there 4 11"], 1, True),  # rank 0 is elsewhere now
    (["7", "there 4 11"], 0, False), (["6", "here 5 98"], 1, False), (None, 1, False)])
def test_a_restart_goes_on_from_a_checkpoint_of_its_own_job_only(begun, restarts, goes_on,
                                                                 monkeypatch):
    monkeypatch.setattr(ranks, "job", lambda: ["7", "here 5 99"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
    assert ranks.goes_on(begun) == goes_on


def test_a_job_without_a_name_is_known_by_the_process_that_started_it(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    mine = ranks.job()
    assert ranks.goes_on(mine) and mine[1].split()[1] == str(os.getppid())
    assert not ranks.goes_on(["none", mine[1] + "0"])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert ranks.job() is None and not ranks.goes_on(mine)
