// Your digit: the canvas, and what the VAE with 20 latent dimensions says of it.

function padPanel(test) {
  const canvas = $("pad");
  const pad = new Pad(canvas, (strokes) =>
    change({ digit: strokes.length ? "s." + writeStrokes(strokes) : "blank", pen: 1 }));

  function draw() {
    const { context, width } = blankCanvas(canvas);
    const strokes = strokesOf(state.digit);
    if (!strokes.length) {
      pad.strokes = [];
      const small = document.createElement("canvas");
      small.width = small.height = SIDE;
      paintImage(small, imageOf(state.digit, test), (ink) => mix(colors.panel, colors.ink, ink));
      context.imageSmoothingEnabled = false;
      context.drawImage(small, 0, 0, width, width);
    } else if (!pad.isDown) pad.strokes = strokes;
    context.strokeStyle = css("ink");
    context.lineWidth = 2 * PEN * width;
    for (const stroke of strokes) {
      const points = stroke.map(([x, y]) => [x * width, y * width]);
      line(context, points.length > 1 ? points : [points[0], points[0]]);
    }
    if (state.digit === "blank" && document.activeElement !== canvas) {
      context.fillStyle = css("soft");
      context.textAlign = "center";
      context.fillText("draw here", width / 2, width / 2);
    }
    if (pad.byKeys) { // where the pen is
      const [x, y] = pad.pen.map((value) => value * width);
      context.strokeStyle = css("accent");
      context.lineWidth = pad.isDown ? 4 : 2;
      context.beginPath();
      context.arc(x, y, PEN * width + 3, 0, 2 * Math.PI);
      context.stroke();
    }
    for (const button of $("pad-tests").children)
      button.setAttribute("aria-pressed", button.dataset.digit === state.digit);
  }

  range(test.labels.length).forEach((i) => {
    const button = $("pad-tests").appendChild(document.createElement("button"));
    const tile = button.appendChild(document.createElement("canvas"));
    [tile.width, tile.height, tile.className, button.type] = [SIDE, SIDE, "tile", "button"];
    button.dataset.digit = `t${i}`;
    button.setAttribute("aria-label", `Test image: a ${test.labels[i]}`);
    button.onclick = () => change({ digit: `t${i}` });
  });
  watch(["look"], () => Array.from($("pad-tests").children).forEach((button, i) =>
    paintImage(button.firstChild, imageOf(`t${i}`, test))));
  $("pad-undo").onclick = () => pad.undo();
  $("pad-clear").onclick = () => pad.clear();
  $("pad-shoe").onclick = () => change({ digit: "shoe" });
  $("pad-noise").onclick = () => change({ digit: "noise1" });
  watch(["digit", "pen", "look"], draw);
}

function digitPanel(vae, test, testNll) {
  const DRAWS = 2000; // importance samples
  const MARGIN = 24; // pixels beside the posterior's bars
  const RIGHT = 250; // nats at the right edge of the histogram

  let shown = "", curve = [], kl = 0; // what the numbers are of; nats by number of codes

  function show() {
    const grey = imageOf(state.digit, test), x = binarized(grey), posterior = vae.posterior(x);
    paintImage($("seen-grey"), grey);
    paintImage($("seen-binary"), x);
    paintImage($("seen-again"), vae.decode(Float64Array.from(posterior.mean)));
    drawPosterior(posterior);
    if (shown !== state.digit) start("digit", weigh(x, posterior));
    else if (curve.length) drawNumbers();
    shown = state.digit;
  }

  function drawPosterior({ mean, logStd }) {
    const { context, x, y, width } = chart($("posterior"), [-0.5, mean.length - 0.5], [-3, 3],
      range(mean.length).filter((i) => i % 5 === 4 || !i).map((i) => [i, `z${i + 1}`]), { margin: MARGIN });
    context.textAlign = "right";
    for (const value of [-2, 0, 2]) context.fillText(minus(value, 0), MARGIN - 6, y(value) + 4);
    context.fillStyle = css("soft", 0.13);
    context.fillRect(MARGIN, y(1), width - 2 * MARGIN, y(-1) - y(1));
    context.strokeStyle = css("line");
    line(context, [[MARGIN, y(0)], [width - MARGIN, y(0)]]);
    const bar = (x(1) - x(0)) * 0.62;
    for (let i = 0; i < mean.length; i++) {
      const deviation = Math.exp(logStd[i]);
      context.fillStyle = css("accent", 0.35);
      context.fillRect(x(i) - bar / 2, Math.min(y(mean[i]), y(0)), bar, Math.abs(y(mean[i]) - y(0)));
      context.strokeStyle = css("accent");
      context.lineWidth = 1.5;
      line(context, [[x(i), y(mean[i] - deviation)], [x(i), y(mean[i] + deviation)]]);
    }
    describe("posterior", "Posterior means: " + Array.from(mean, (m) => m.toFixed(1)).join(", "));
  }

  // -ELBO and -log p(x) <= -log mean of K importance weights, while K grows (Burda et al. 2016).
  function* weigh(x, posterior) {
    const draw = normals(1);
    curve = [];
    kl = vae.kl(posterior);
    let total = 0, logTotal = -Infinity;
    for (let k = 1; k <= DRAWS; k++) {
      const logWeight = vae.logWeight(x, posterior, fill(posterior.mean.length, draw));
      total += logWeight;
      logTotal = k > 1 ? logAddExp(logTotal, logWeight) : logWeight;
      if (k >= 1.1 * (curve.at(-1)?.k ?? 0) || k === DRAWS)
        curve.push({ k, elbo: -total / k, nll: Math.log(k) - logTotal });
      if (k % 50 === 1 || k === DRAWS) drawNumbers();
      yield;
    }
  }

  function drawNumbers() {
    const { k, elbo, nll } = curve.at(-1), share = shareBelow(testNll, nll);
    $("nats-elbo").textContent = elbo.toFixed(1);
    $("nats-kl").textContent = kl.toFixed(1);
    $("nats-reconstruction").textContent = (elbo - kl).toFixed(1);
    $("nats-nll").textContent = nll.toFixed(1);

    const values = curve.flatMap((point) => [point.elbo, point.nll]);
    const low = Math.min(...values), high = Math.max(...values), space = Math.max(0.15 * (high - low), 0.5);
    const { context, x, y } = chart($("converging"), [1, DRAWS], [low - space, high + space],
      [1, 10, 100, 1000].map((k) => [k, k.toLocaleString("en")]), { log: true });
    context.lineWidth = 2;
    for (const [key, color] of [["elbo", "soft"], ["nll", "accent"]]) {
      context.strokeStyle = context.fillStyle = css(color);
      const points = curve.map((point) => [x(point.k), y(point[key])]);
      line(context, points);
      context.textAlign = "right";
      const [right, height] = points.at(-1);
      context.fillText(curve.at(-1)[key].toFixed(1), Math.max(right, 60), height + (key === "elbo" ? -6 : 15));
    }
    describe("converging", `After ${k} codes: minus ELBO ${elbo.toFixed(1)}, minus log p ${nll.toFixed(1)} nats`);

    histogram($("standing"), testNll, [0, RIGHT], range(6).map((i) => [50 * i, String(50 * i)]), nll,
      nll > RIGHT ? `${nll.toFixed(0)} \u2192` : nll.toFixed(0));
    describe("standing", `Histogram of minus log p of test images; yours at ${nll.toFixed(0)} nats`);
    $("standing-says").textContent = `\u2212log p(x) in nats of ${testNll.length.toLocaleString("en")} `
      + `test images, and of yours: ${percent(share)} of them are likelier.`;
  }

  watch(["digit", "look"], show);
}
