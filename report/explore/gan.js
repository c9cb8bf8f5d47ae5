// The GAN: noise on a circle through two seeds, the walk between them, and what D says.

function ganPanel(gan, test) {
  const WALK = 9, DIAL = 12; // images of a walk, and around the dial
  const GROUP = 16; // images that D sees together (a3_gan_template.py)

  const noise = (seed) => fill(gan.dimensions, normals(seed));
  const length = (z) => Math.sqrt(sum(z.map((value) => value * value)));
  const blend = (z, share, other, rest) => z.map((value, i) => share * value + rest * other[i]);
  const asGrey = (image) => image.map((value) => (value + 1) / 2);

  // On the circle of two noises: A at 0 degrees, B where their angle is, as slerp in a3/latents.py does
  // for noises of equal length; the length changes in proportion.
  function circle(a, b) {
    const angle = Math.acos(sum(a.map((value, i) => value * b[i])) / length(a) / length(b));
    const at = (t) => { // t = 0 is A, 1 is B, the length in proportion
      const s = Math.sin(angle), aim = t * angle;
      const mixed = blend(a, Math.sin(angle - aim) / s / length(a), b, Math.sin(aim) / s / length(b));
      const radius = length(a) + clamp(t, 0, 1) * (length(b) - length(a));
      return mixed.map((value) => radius * value);
    };
    return { angle, at };
  }

  function draw() {
    const [a, b] = [noise(state.a), noise(state.b)], { angle, at } = circle(a, b);
    const z = at(state.turn * Math.PI / 180 / angle).map((value) => state.heat * value);
    const image = gan.generate(z);
    paintImage($("gan-digit"), asGrey(image));
    $("gan-says").textContent = `G(z), |z| = ${length(z).toFixed(1)}`;
    $("gan-heat-says").textContent = state.heat.toFixed(2);
    $("gan-heat").value = state.heat;
    $("seed-a").value = state.a;
    $("seed-b").value = state.b;
    drawDial(angle, at);
    if (gan.hasDiscriminator) start("judge", judge(image));
  }

  // The dial, with what G draws all around it.
  const around = { of: "", images: [] };
  function drawDial(angle, at) {
    const { context, width } = blankCanvas($("dial")), r = width / 2, size = 0.34 * r;
    const place = (turn, radius) => [r + radius * r * Math.sin(turn), r - radius * r * Math.cos(turn)];
    const wanted = `${state.a} ${state.b} ${state.heat} ${colors.ink}`;
    if (around.of !== wanted) Object.assign(around, { of: wanted, images: range(DIAL).map((i) => {
      const small = document.createElement("canvas");
      small.width = small.height = SIDE;
      const z = at(2 * Math.PI * i / DIAL / angle).map((value) => state.heat * value);
      paintImage(small, asGrey(gan.generate(z)), (ink) => mix(colors.panel, colors.ink, ink));
      return small;
    }) });
    around.images.forEach((image, i) => {
      const [x, y] = place(2 * Math.PI * i / DIAL, 0.78);
      context.drawImage(image, x - size / 2, y - size / 2, size, size);
    });
    context.fillStyle = css("soft");
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [turn, name] of [[0, "A"], [angle, "B"], [Math.PI, "\u2212A"], [Math.PI + angle, "\u2212B"]])
      context.fillText(name, ...place(turn, 0.5));
    const now = state.turn * Math.PI / 180;
    context.strokeStyle = context.fillStyle = css("accent");
    context.lineWidth = 2;
    line(context, [[r, r], place(now, 0.36)]);
    context.beginPath();
    context.arc(...place(now, 0.36), 6, 0, 2 * Math.PI);
    context.fill();
    $("dial").setAttribute("aria-valuenow", state.turn);
  }

  function drawWalks() {
    const [a, b] = [noise(state.a), noise(state.b)], { at } = circle(a, b);
    const ways = { "walk-line": (t) => blend(a, 1 - t, b, t), "walk-arc": at };
    for (const [id, way] of Object.entries(ways)) {
      const codes = range(WALK).map((i) => way(i / (WALK - 1)).map((value) => state.heat * value));
      paintFilm($(id), codes.map((z) => asGrey(gan.generate(z))), codes.map((z) => length(z).toFixed(1)));
    }
  }

  // D's answers: of real test images among themselves, of samples among themselves, of the sample
  // among 15 others and of your digit among 15 test images.
  let known = null;
  function* judge(sample) {
    if (!known) {
      known = { real: [], fake: [] };
      const draw = normals(0);
      for (let i = 0; i < GROUP; i++) {
        known.real.push(gan.features(imageOf(`t${i}`, test).map((ink) => 2 * ink - 1)));
        known.fake.push(gan.features(gan.generate(fill(gan.dimensions, draw))));
        yield;
      }
    }
    const among = (h, others) => sigmoid(gan.logit([h, ...others.slice(1, GROUP)]));
    const own = gan.features(imageOf(state.digit, test).map((ink) => 2 * ink - 1));
    const each = (group) => group.map((h, i) => sigmoid(gan.logit([h, ...group.filter((_, k) => k !== i)])));
    yield;
    drawJudged(each(known.real), each(known.fake),
      among(own, known.real), among(gan.features(sample), known.fake));
  }

  function drawJudged(real, fake, own, sample) {
    const { context, x, bottom, width } = chart($("judged"), [0, 1], [0, 1],
      [[0, "0: generated"], [0.5, "0.5"], [1, "1: real"]], { margin: 10 });
    const rows = [["test images", real, own, "your digit"], ["samples", fake, sample, "this sample"]];
    rows.forEach(([name, values, marked, words], row) => {
      const y = 34 + row * (bottom - 24) / 2;
      context.fillStyle = css("soft");
      context.textAlign = "left";
      context.fillText(name, 10, y - 16);
      context.fillStyle = css("ink", 0.35);
      for (const value of values) {
        context.beginPath();
        context.arc(x(value), y, 4.5, 0, 2 * Math.PI);
        context.fill();
      }
      context.fillStyle = css("accent");
      context.beginPath();
      context.arc(x(marked), y, 6, 0, 2 * Math.PI);
      context.fill();
      const text = `${words} ${marked.toFixed(2)}`, half = context.measureText(text).width / 2;
      context.textAlign = "center";
      context.fillText(text, clamp(x(marked), half + 90, width - half - 4), y - 16);
    });
    describe("judged", `D of your digit ${own.toFixed(2)}, of this sample ${sample.toFixed(2)}`);
    $("judged-says").textContent =
      `D, the probability that an image is real, of ${GROUP} test images and ${GROUP} samples. `
      + "D judges an image among others: one of its features is how much a group differs. "
      + `So your digit is put among ${GROUP - 1} test images, and the sample among ${GROUP - 1} samples. `
      + "D learnt to tell from MNIST the generator in training, of which this one is an average, "
      + "and means something against it alone: of a shoe it knows nothing.";
  }

  const dial = $("dial");
  let isDown = false;
  const turnTo = (event) => {
    const box = dial.getBoundingClientRect();
    const turn = Math.atan2(event.clientX - box.left - box.width / 2, box.top + box.height / 2 - event.clientY);
    change({ turn: (Math.round(turn * 180 / Math.PI) + 360) % 360 });
  };
  dial.addEventListener("pointerdown", (event) => {
    dial.setPointerCapture(event.pointerId);
    isDown = true;
    turnTo(event);
  });
  dial.addEventListener("pointermove", (event) => isDown && turnTo(event));
  for (const name of ["pointerup", "pointercancel"]) dial.addEventListener(name, () => isDown = false);
  dial.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -15, PageUp: 15 }[event.key];
    if (!step) return;
    event.preventDefault();
    change({ turn: (state.turn + step * (event.shiftKey ? 10 : 1) + 360) % 360 });
  });
  for (const [id, key] of [["seed-a", "a"], ["seed-b", "b"]])
    $(id).onchange = () => change({ [key]: seedIn(id) });
  $("gan-heat").oninput = () => change({ heat: Number($("gan-heat").value) });
  const anySeed = () => Math.floor(Math.random() * 1e5);
  $("gan-new").onclick = () => change({ a: anySeed(), b: anySeed() });
  $("judge").hidden = !gan.hasDiscriminator;
  watch(["a", "b", "turn", "heat", "digit", "look"], draw);
  watch(["a", "b", "heat", "look"], drawWalks);
}
