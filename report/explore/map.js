// The map: the plane of the VAE with two latent dimensions.

function mapPanel(vae, test, vaeCodes, vaeLabels) {
  const plane = $("plane"), REACH = 3; // the farthest code, in deviations of the prior
  const STEPS_SHOWN = 12, SPEED = 1; // images of a path; deviations a second
  const LABEL = 20; // pixels
  let draws = false, path = [], isDown = false;

  // A code's place is its quantile of the prior in both dimensions, so that equal areas are equally
  // likely (normal_grid in code/a3/latents.py): shares of the plane's side, from its upper left.
  const inside = (value) => Number(clamp(value, -REACH, REACH).toFixed(3));
  const toShares = ([a, b]) => [tail(-a), tail(b)];
  const toCode = (shares) => {
    const [x, y] = shares.map((share) => clamp(share, 1e-4, 1 - 1e-4));
    return [-tailInverse(x), tailInverse(y)].map(inside);
  };
  const toPlace = (z, size) => toShares(z).map((share) => share * size);
  const codeAt = (event) => {
    const box = plane.getBoundingClientRect();
    return toCode([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
  };

  // Codes and rings do not change: they are drawn once a size and scheme, and copied each frame.
  const behind = document.createElement("canvas");
  let drawnFor = "";
  function drawBehind(width, ratio) {
    const wanted = `${width} ${ratio} ${colors.ink}`;
    if (drawnFor === wanted) return;
    drawnFor = wanted;
    behind.width = behind.height = width * ratio;
    const context = behind.getContext("2d");
    context.scale(ratio, ratio);
    const dot = Math.max(width / 260, 1.4);
    for (let i = 0; i < vaeLabels.length; i++) {
      const [x, y] = toPlace([vaeCodes[2 * i], vaeCodes[2 * i + 1]], width);
      context.fillStyle = classColor(vaeLabels[i], 0.6);
      context.fillRect(x - dot / 2, y - dot / 2, dot, dot);
    }
    context.strokeStyle = css("ink", 0.25);
    for (const radius of [1, 2])
      line(context, range(121).map((i) =>
        toPlace([Math.cos, Math.sin].map((f) => radius * f(i * Math.PI / 60)), width)));
    context.font = FONT;
    context.fillStyle = css("ink");
    context.fillText("\u2191 z\u2082", 7, 18);
    context.textAlign = "right";
    context.fillText("z\u2081 \u2192", width - 7, width - 8);
    labels = labelPlaces(width);
  }

  let labels = []; // the places of the classes' labels
  function drawLabels(context) {
    context.font = `600 ${FONT}`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineWidth = 1.5;
    labels.forEach(([x, y], digit) => {
      context.fillStyle = css("panel", 0.9);
      context.strokeStyle = classColor(digit);
      context.beginPath();
      context.arc(x, y, LABEL / 2, 0, 2 * Math.PI);
      context.fill();
      context.stroke();
      context.fillStyle = css("ink");
      context.fillText(digit, x, y + 1);
    });
  }

  // A class's label stands at the median of its codes, or beside it where two would overlap.
  function labelPlaces(width) {
    const places = range(10).map((digit) => toPlace([0, 1].map((k) =>
      median(vaeCodes.filter((_, i) => i % 2 === k && vaeLabels[i >> 1] === digit))), width)
      .map((place) => clamp(place, LABEL, width - LABEL)));
    for (let round = 0; round < 50; round++)
      for (const one of places) for (const other of places) {
        const way = [0, 1].map((k) => other[k] - one[k]), length = Math.hypot(...way);
        if (length > 0 && length < 1.2 * LABEL) way.forEach((step, k) => {
          one[k] -= step / length;
          other[k] += step / length;
        });
      }
    return places;
  }
  const median = (values) => values.sort()[values.length >> 1];

  function draw() {
    const { context, width } = blankCanvas(plane), ratio = devicePixelRatio || 1;
    drawBehind(width, ratio);
    context.drawImage(behind, 0, 0, width, width);
    const walked = isDown && draws ? path : planePath();
    context.strokeStyle = css("ink", 0.8);
    context.lineWidth = 2;
    line(context, walked.map((z) => toPlace(z, width)));
    drawLabels(context);
    const [x, y] = toPlace(state.z, width);
    context.lineWidth = 2;
    context.strokeStyle = css("accent");
    context.beginPath();
    context.arc(x, y, 8, 0, 2 * Math.PI);
    context.stroke();
    line(context, [[x - 13, y], [x - 5, y]]);
    line(context, [[x + 5, y], [x + 13, y]]);
    line(context, [[x, y - 13], [x, y - 5]]);
    line(context, [[x, y + 5], [x, y + 13]]);
    paintImage($("plane-digit"), vae.decode(Float64Array.from(state.z)));
    $("plane-says").textContent = `z = (${state.z.map((value) => minus(value, 2)).join(", ")}); `
      + `of the 50 nearest test images ${nearest()}`;
  }

  // What the nearest codes are, in words.
  function nearest() {
    const [a, b] = state.z;
    const far = Array.from(vaeLabels, (label, i) =>
      [(vaeCodes[2 * i] - a) ** 2 + (vaeCodes[2 * i + 1] - b) ** 2, label]);
    const counts = new Map();
    for (const [, label] of far.sort((one, other) => one[0] - other[0]).slice(0, 50))
      counts.set(label, (counts.get(label) ?? 0) + 1);
    return [...counts].sort((one, other) => other[1] - one[1]).slice(0, 2)
      .map(([label, count]) => `${count} are ${label}s`).join(", ");
  }

  const planePath = () => readStrokes(state.path).flat().map(toCode);
  const writePath = () => writeStrokes([path.map(toShares)]);

  // The lengths of a path's parts, the first of which is a point.
  const partsOf = (points) => points.map((z, i) =>
    i && Math.hypot(z[0] - points[i - 1][0], z[1] - points[i - 1][1]));

  // Points of a path at equal distances.
  function along(points, n) {
    const lengths = partsOf(points);
    const total = sum(lengths);
    return range(n).map((k) => {
      let rest = total * k / (n - 1), i = 1;
      while (i < points.length - 1 && rest > lengths[i]) rest -= lengths[i++];
      const share = lengths[i] ? Math.min(rest / lengths[i], 1) : 0;
      return [0, 1].map((d) => points[i - 1][d] + share * (points[i][d] - points[i - 1][d]));
    });
  }

  function drawFilm() {
    const points = planePath();
    const shown = points.length > 1 ? along(points, STEPS_SHOWN) : [];
    $("plane-film").parentElement.hidden = $("plane-walk").hidden = !shown.length;
    paintFilm($("plane-film"), shown.map((z) => vae.decode(Float64Array.from(z))));
  }

  function* walk() {
    const points = planePath();
    const seconds = Math.max(sum(partsOf(points)) / SPEED, 1), begin = performance.now();
    const steps = along(points, 400);
    for (let share = 0; share < 1;) {
      share = Math.min((performance.now() - begin) / 1000 / seconds, 1);
      const z = steps[Math.round(share * 399)].map(inside);
      if (String(z) !== String(state.z)) change({ z });
      yield;
    }
  }

  const drawing = (on) => {
    draws = on;
    $("plane-draw").setAttribute("aria-pressed", on);
    $("plane-move").setAttribute("aria-pressed", !on);
  };
  $("plane-move").onclick = () => drawing(false);
  $("plane-draw").onclick = () => drawing(true);
  $("plane-walk").onclick = () => start("walk", walk());
  $("plane-own").onclick = () => {
    const { mean } = vae.posterior(binarized(imageOf(state.digit, test)));
    change({ z: Array.from(mean, inside) });
  };
  plane.addEventListener("pointerdown", (event) => {
    plane.setPointerCapture(event.pointerId);
    jobs.delete("walk");
    isDown = true;
    path = [codeAt(event)];
    change({ z: path[0] });
  });
  plane.addEventListener("pointermove", (event) => {
    if (!isDown) return;
    const z = codeAt(event);
    if (draws) path.push(z);
    change({ z });
  });
  for (const name of ["pointerup", "pointercancel"]) plane.addEventListener(name, () => {
    if (isDown && draws && path.length > 1) {
      change({ path: writePath() });
      start("walk", walk());
    }
    isDown = false;
  });
  plane.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!way) return;
    event.preventDefault();
    change({ z: state.z.map((value, k) => inside(value + way[k] * (event.shiftKey ? 0.5 : 0.1))) });
  });
  watch(["z", "path", "look"], draw);
  watch(["path", "look"], drawFilm);
}
