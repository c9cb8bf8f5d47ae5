"""The page to play with: its numbers against PyTorch's in a real browser, strokes, requests."""

import re
import shutil
import time
import zlib

import numpy as np
import pytest
import torch

import a3_gan_template as gan
import nf_multiscale
import sample
from a3.runs import RunError
from made_up import seeded
from report_modules import module

page = module("page")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
RUNS = list(page.NETWORKS)
FLAGS = {"vae-z2": {"hidden_dim": 40, "zdim": 2}, "vae-z20": {"hidden_dim": 40, "zdim": 20},
         "gan": {"latent_dim": 100, "recipe": "default"}, "nf-multiscale": {}}
COMMITTED = {run: stored for run in RUNS if (stored := page.load(run))}


# What PyTorch and the page compute of 16 inputs --------------------------------------------------

def noise(number: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(page.IMAGES, number, generator=torch.Generator().manual_seed(seed))


def uniform(x: torch.Tensor) -> torch.Tensor:
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def vae_numbers(stored: dict, x: torch.Tensor) -> list[torch.Tensor]:
    network = page.network_of(stored)
    mean, log_std = network.encoder.posterior(x)
    kl = network.elbo_terms(x)[1]
    log_weight = network.log_weights(x, 1, torch.Generator().manual_seed(0))
    return [mean, log_std, network.decoder(mean), kl[:, None], log_weight.T]


@torch.no_grad()
def gan_numbers(stored: dict, z: torch.Tensor) -> list[torch.Tensor]:
    images = page.network_of(stored)(z)
    return [images, page.discriminator_of(stored).logits(images)]


@torch.no_grad()
def flow_numbers(stored: dict, x: torch.Tensor) -> list[torch.Tensor]:
    network = page.network_of(stored)
    log_p = network.log_probs(x)
    return [network.encode_at(x.long(), uniform(x)), log_p,
            -log_p.sum(dim=1, keepdim=True) / (784 * np.log(2)), torch.zeros(len(x), 1)]


PYTORCH = {"vae-z2": vae_numbers, "vae-z20": vae_numbers, "gan": gan_numbers,
           "nf-multiscale": flow_numbers}
VAE_JS = """inputs.map(([x, eps]) => {
  const q = network.posterior(x);
  return [q.mean, q.logStd, network.decode(q.mean), [network.kl(q)],
          [network.logWeight(x, q, eps)]];
})"""
JS = {"vae-z2": VAE_JS, "vae-z20": VAE_JS, "gan": """(() => {
  const images = inputs.map(([z]) => network.generate(z));
  const h = images.map((x) => network.features(x));
  return images.map((x, i) => [x, [network.logit([h[i], ...h.filter((_, k) => k !== i)])]]);
})()""", "nf-multiscale": """inputs.map(([x, u]) => {
  const { z, logP } = finish(network.encode(x, u)), back = finish(network.decode(z));
  return [z, logP, [-sum(logP) / 784 / Math.LN2], [sum(back.map((value, i) => value !== x[i]))]];
})"""}
CALL = """([run, inputs]) => {
  const network = networks[run];
  const finish = (job) => {
    for (;;) { const step = job.next(); if (step.done) return step.value; }
  };
  return (%s).map((parts) => parts.map((part) => Array.from(part)));
}"""


def differences(run: str, stored: dict, opened, images: torch.Tensor) -> list[float]:
    """Return how far the page's numbers are from PyTorch's at most, for each kind of them.

    Args:
        images: (16, 784) in 0..255; a GAN takes noise instead.
    """
    x = eps = images
    if run == "gan":
        x = noise(stored["flags"]["latent_dim"])
    elif run == "nf-multiscale":
        eps = uniform(x)
    else:
        x, eps = (images > 127).float(), noise(stored["flags"]["zdim"])
    inputs = [list(pair) for pair in zip(x.tolist(), eps.tolist(), strict=True)]
    found = zip(*opened.evaluate(CALL % JS[run], [run, inputs]), strict=True)
    return [(torch.tensor(one, dtype=torch.float64) - other).abs().max().item()
            for one, other in zip(found, PYTORCH[run](stored, x), strict=True)]


# The browser -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium here (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opening(browser, file, **options):
    """Open a page by its file:// address; return it, with what it asked for and complained of."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
    opened.requests, opened.complaints = [], []
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.on("pageerror", lambda error: opened.complaints.append(error.message))
    opened.on("console", lambda line: opened.complaints.append(line.text))
    opened.goto(file.as_uri() if hasattr(file, "as_uri") else file)
    wait(opened, "performance.getEntriesByName('ready').length")
    return opened


def wait(opened, condition: str) -> None:
    """Wait until a condition holds; the page allows no eval, by which Playwright would."""
    for _ in range(1200):
        if opened.evaluate(condition):
            return
        time.sleep(0.05)
    raise AssertionError(f"after a minute still not: {condition}")


# Made-up weights, which 8 bits hold exactly ------------------------------------------------------

def made_up(run: str) -> dict:
    """Return weights as they are stored; the numbers of a matrix are -c, 0 or c."""
    stored = {"run": run, "flags": FLAGS[run], "weights_sha256": run}
    network = sample.kind_of(run)[1](stored["flags"])
    parts = {"packed": network}
    if run == "gan":
        parts["discriminator"] = gan.GAN(recipe="default").discriminator
    for key, part in parts.items():
        for value in sample.floats(part):
            value.data.copy_(torch.rand_like(value) / 4 + 0.5)  # of norms and variances, too
            if value.ndim > 1:
                c = 2.0 ** -round(np.log2(value[0].numel()) / 2)
                value.data.copy_(c * torch.randint(-1, 2, value.shape))
        stored[key] = sample.pack(part)
    return stored


def bars(number: int) -> torch.Tensor:
    """Return images of bars of random grey levels, (number, 784) in 0..255."""
    images = torch.zeros(number, 28, 28)
    levels = 255 * noise(784)[:number].abs().clamp(0.01, 1).unflatten(1, (28, 28))
    for i in range(number):
        part = (i, slice(i % 5, 20), slice(3 + i, 9 + i))
        images[part] = levels[part].round()
    return images.flatten(1)


def test_the_page_computes_what_pytorch_does(browser, tmp_path, monkeypatch):
    for name, value in (("WIDTH", 16), ("LAYERS", 2), ("CHANNELS", 8), ("BLOCKS", 2)):
        monkeypatch.setattr(nf_multiscale, name, value)
    compress = zlib.compress
    monkeypatch.setattr(zlib, "compress", lambda data, _: compress(data, 1))  # quicker
    images, stored = bars(page.IMAGES), seeded(lambda: {run: made_up(run) for run in RUNS})
    monkeypatch.setattr(page, "measured", lambda _: {
        "images": images.numpy().ravel(), "labels": np.arange(16.0) % 10,
        "vae-z2 codes": noise(2).numpy().ravel(), "vae-z2 labels": np.arange(16.0) % 10,
        "vae-z20 nll": np.arange(100.0), "nf-multiscale bits_per_dim": np.arange(3.0)})
    file = tmp_path / "explore.html"
    file.write_text(page.page(stored), encoding="utf-8")
    opened = opening(browser, file)
    for run in RUNS:
        apart = differences(run, stored[run], opened, images[:4] if "nf" in run else images)
        assert max(apart) < 1e-4, (run, apart)
    opened.close()


# The committed page ------------------------------------------------------------------------------

# How far rounded weights may move the numbers: kind by kind, as PYTORCH gives them.
TOLERANCES = {"vae-z2": [0.02, 0.02, 0.1, 0.05, 1], "vae-z20": [0.1, 0.05, 0.1, 0.2, 1],
              "gan": [0.2, 0.2], "nf-multiscale": [0.3, 0.5, 0.005, 0]}


@pytest.fixture(scope="module")
def test_images() -> torch.Tensor:
    return torch.from_numpy(page.measured(COMMITTED)["images"]).unflatten(0, (page.IMAGES, 784))


@pytest.fixture
def committed(browser):
    """Return a function that opens the page; at the end it has asked for nothing else."""
    pages = []

    def opened(hash_: str = "", **options):
        pages.append(opening(browser, page.PAGE.as_uri() + hash_, **options))
        return pages[-1]

    yield opened
    for one in pages:
        assert not one.complaints, one.complaints
        assert [url.split("#")[0] for url in one.requests] == [page.PAGE.as_uri()], one.requests
        one.close()


def test_the_committed_page_is_that_of_the_committed_weights():
    text = page.PAGE.read_text(encoding="utf-8")
    assert len(text.encode()) <= page.LARGEST
    assert page.inflated(text) == page.inflated(page.page(COMMITTED)), "make page"


@pytest.mark.parametrize("run", COMMITTED)
def test_the_bits_of_a_weight_are_enough(run, committed, test_images):
    apart = differences(run, COMMITTED[run], committed(), test_images)
    assert all(one <= most for one, most in zip(apart, TOLERANCES[run], strict=True)), apart


def shown(opened, *canvases: str) -> list[str]:
    """Return what is on canvases, once the likelihood of the digit has been computed."""
    wait(opened, "!jobs.has('digit') && !dirty.size")
    return [opened.evaluate(f"$('{name}').toDataURL()") for name in canvases]


def drag(opened, canvas: str, *shares: tuple[float, float]) -> None:
    """Move a pressed mouse through places of a canvas, given as shares of its sides."""
    opened.locator(f"#{canvas}").scroll_into_view_if_needed()
    box = opened.locator(f"#{canvas}").bounding_box()
    for i, (x, y) in enumerate(shares):
        opened.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if i == 0:
            opened.mouse.down()
    opened.mouse.up()


SEEN = ("seen-grey", "seen-binary", "seen-again", "posterior", "converging", "standing")


@pytest.mark.skipif(not COMMITTED, reason="no weights are committed yet")
def test_strokes_change_the_canvases_and_an_address_shows_them_again(committed):
    opened = committed()
    before, map_before = ([opened.evaluate(f"$('{name}').toDataURL()") for name in names]
                          for names in (SEEN, ["plane-digit"]))
    drag(opened, "pad", (0.3, 0.2), (0.7, 0.2), (0.5, 0.5), (0.4, 0.9))
    drag(opened, "plane", (0.5, 0.5), (0.2, 0.9))
    after = shown(opened, *SEEN)
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert shown(opened, "plane-digit") != map_before
    image = np.array(opened.evaluate("Array.from(imageOf(state.digit))")).reshape(28, 28)
    rows, columns = (np.flatnonzero(image.max(axis=axis) > 0.5) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == pytest.approx(20, abs=1), (rows, columns)
    centre = (image.sum(axis=1) @ np.arange(28), image.sum(axis=0) @ np.arange(28)) / image.sum()
    assert centre == pytest.approx(13.5, abs=0.1), centre
    wait(opened, "location.hash.includes('digit=s.') && location.hash.includes('z=')")
    again = committed(opened.evaluate("location.hash"))
    assert again.evaluate("state") == opened.evaluate("state")
    assert shown(again, *SEEN, "plane-digit") == after + shown(opened, "plane-digit")


@pytest.mark.skipif(not COMMITTED, reason="no weights are committed yet")
def test_keys_draw_walk_and_turn_as_the_mouse_does(committed):
    opened = committed("#digit=blank&z=0,0&turn=350")
    for canvas, keys in {"pad": [" ", "ArrowDown", "ArrowDown", "ArrowRight", " ", "ArrowUp"],
                         "plane": ["ArrowLeft", "Shift+ArrowUp"], "dial": ["PageUp"]}.items():
        opened.locator(f"#{canvas}").focus()
        for key in keys:
            opened.keyboard.press(key)
    assert len(opened.evaluate("strokesOf(state.digit)")[0]) == 4
    assert opened.evaluate("[state.z, state.turn]") == [[-0.1, 0.5], 5]
    opened.locator("#pad").press("Backspace")
    assert opened.evaluate("state.digit") == "blank"


@pytest.mark.skipif(not COMMITTED, reason="no weights are committed yet")
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1600, "light")])
def test_the_page_fits_its_window_and_soon_paints(width, scheme, committed):
    opened = committed("#digit=shoe&z=nonsense&a=-5&turn=", color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate("[state.z, state.a, state.turn]") == [
        opened.evaluate("DEFAULTS.z"), 0, 0], "what is wrong in an address is mended"
    assert opened.evaluate("isDark()") == (scheme == "dark")
    paint, ready = opened.evaluate("""["first-paint", "ready"].map((name) =>
        performance.getEntriesByName(name)[0].startTime)""")
    frames = opened.evaluate("""async () => {
      const times = [];
      for (let i = 0; i <= 20; i++) {
        change({ z: [i / 10 - 1, 0] });
        times.push(await new Promise(requestAnimationFrame));
      }
      return times.slice(1).map((time, i) => time - times[i]);
    }""")
    print(f"{width} px: first paint {paint:.0f} ms, ready {ready:.0f} ms, "
          f"{np.median(frames):.0f} ms a frame")
    assert paint < 5000 and ready < 10_000 and np.median(frames) < 200  # on a busy machine


def test_a_panel_without_weights_is_left_out_and_says_so(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "measured", lambda _: {"images": np.zeros(784)})
    file = tmp_path / "explore.html"
    file.write_text(page.page({}), encoding="utf-8")
    opened = opening(browser, file)
    lines = opened.locator(".missing").all_inner_texts()
    assert [re.search("weights of (\\S+) are not", line)[1] for line in lines] == RUNS
    assert opened.locator("canvas").count() == 0 and not opened.complaints


# What goes into the page -------------------------------------------------------------------------

def test_a_quantized_number_is_within_half_a_step():
    matrix = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)).numpy()
    matrix[3] = 0
    numbers, scale = page.quantized(matrix, np.int8)
    largest = np.abs(numbers).max(axis=1)
    assert numbers.dtype == np.int8 and (largest[matrix.any(axis=1)] == 127).all(), largest
    apart = np.abs(numbers * scale[:, None] - matrix).max(axis=1)
    assert (apart <= 0.501 * scale).all(), apart / scale


def test_measures_of_other_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MEASURED", tmp_path / "explore.npz")
    stored = {"gan": {"run": "gan", "weights_sha256": "new"}}
    with pytest.raises(RunError, match="not of the weights of 'gan'"):
        page.measured(stored)
    np.savez(tmp_path / "explore.npz", **{"gan weights_sha256": np.array("old"), "images": [1]})
    with pytest.raises(RunError, match="report/page.py --measure makes it so"):
        page.measured(stored)
    stored["gan"]["weights_sha256"] = "old"
    assert list(page.measured(stored)) == ["images"]


def test_every_link_of_the_page_leads_to_a_question_of_the_report():
    html = (page.PARTS / "explore.html").read_text(encoding="utf-8")
    questions = re.findall(r"report\.pdf#nameddest=q:([\d.]+)", html)
    texts = "".join(path.read_text(encoding="utf-8") for path in page.PARTS.parent.glob("*.tex"))
    assert len(questions) == 4 and all(f"\\question{{{one}}}" in texts for one in questions)
    assert r"\hypertarget{q:#1}" in texts
