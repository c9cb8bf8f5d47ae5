// The flow: your digit to its code and back, where its bits go, and samples.

function flowPanel(flow, test, testBits) {
  const SAMPLES = 6, RIGHT = 2.5; // bits per dimension at the right edge of the histogram
  const known = { digit: "", samples: "", images: [] }; // what has been computed, to draw it again

  function* encode() {
    const x = imageOf(state.digit, test).map((ink) => Math.round(255 * ink));
    Object.assign(known, { digit: state.digit, x, z: null, back: null });
    drawCode();
    Object.assign(known, yield* flow.encode(x, fill(PIXELS, uniforms(1))));
    drawCode();
    known.back = yield* flow.decode(known.z);
    drawCode();
  }

  function drawCode() {
    const { x, z, logP, back } = known;
    paintImage($("flow-x"), x.map((grey) => grey / 255));
    if (z) {
      const bits = logP.map((value) => -value / Math.LN2);
      paintImage($("flow-z"), z, asCode);
      paintImage($("flow-bits"), bits, asBits);
      const size = Math.sqrt(sum(z.map((value) => value * value)) / PIXELS);
      $("flow-z-says").textContent = `code z = f(x), root mean square ${size.toFixed(2)}; noise: 1`;
      $("flow-bits-says").textContent = `bits of each pixel: ${where(x, bits)}`;
      drawStanding(sum(bits) / PIXELS);
    }
    if (back) {
      const errors = Array.from(back, (value, i) => Math.abs(value - x[i]));
      paintImage($("flow-back"), Array.from(back, (grey) => grey / 255));
      const wrong = errors.filter(Boolean).length, most = Math.max(...errors);
      $("flow-back-says").textContent = `the inverse of z: ${wrong} of ${PIXELS} pixels differ`
        + (wrong ? `, by ${most} grey levels at most` : "");
    }
  }

  // Bits of background, edge and inside of strokes: regions in code/a3/nf_bits.py.
  function where(x, bits) {
    const spent = { background: 0, edge: 0, inside: 0 };
    for (let i = 0; i < PIXELS; i++) {
      const around = range(9).map((k) => [(i / SIDE | 0) + (k / 3 | 0) - 1, i % SIDE + k % 3 - 1])
        .map(([r, c]) => r >= 0 && r < SIDE && c >= 0 && c < SIDE && x[r * SIDE + c] > 0);
      spent[around.every(Boolean) ? "inside" : around.some(Boolean) ? "edge" : "background"] += bits[i];
    }
    return Object.entries(spent).map(([name, value]) => `${name} ${value.toFixed(0)}`).join(", ");
  }

  function drawStanding(perDim) {
    histogram($("flow-standing"), testBits, [0, RIGHT], range(6).map((i) => [i / 2, String(i / 2)]), perDim,
      `${perDim.toFixed(2)}${perDim > RIGHT ? " \u2192" : ""}`);
    describe("flow-standing", `Histogram of bits per dimension of test images; yours at ${perDim.toFixed(2)}`);
    $("flow-says").textContent = `Bits per dimension of ${testBits.length.toLocaleString("en")} test images, `
      + `and of yours: ${percent(shareBelow(testBits, perDim))} of them take fewer.`;
  }

  function* sample() {
    const draw = normals(state.seed), images = new Array(SAMPLES).fill(null);
    Object.assign(known, { samples: `${state.seed} ${state.cold}`, images });
    for (let i = 0; i < SAMPLES; i++) {
      const image = yield* flow.decode(fill(PIXELS, draw).map((value) => state.cold * value));
      images[i] = Array.from(image, (grey) => grey / 255);
      paintFilm($("flow-samples"), images);
    }
  }

  $("flow-seed").onchange = () => change({ seed: seedIn("flow-seed") });
  $("flow-heat").oninput = () => change({ cold: Number($("flow-heat").value) });
  watch(["digit", "look"], () => known.digit === state.digit ? drawCode() : start("flow", encode()));
  watch(["seed", "cold", "look"], () => {
    $("flow-seed").value = state.seed;
    $("flow-heat").value = state.cold;
    $("flow-heat-says").textContent = state.cold.toFixed(2);
    if (known.samples === `${state.seed} ${state.cold}`) paintFilm($("flow-samples"), known.images);
    else start("flow samples", sample());
  });
}
