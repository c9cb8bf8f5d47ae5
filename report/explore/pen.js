// Drawn strokes, and the image that MNIST's makers would have made of them: scaled into a box of
// 20 x 20 pixels, the pen's width too, then moved so that the centre of mass is the image's centre.

const PEN = 0.045; // radius, of the canvas's side
const BOX = 20; // pixels
const STEPS = 511; // in which a side is written down
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

// Strokes as text: three letters a point, a dot between strokes.
const writeStrokes = (strokes) => strokes.map((stroke) => stroke.map(([x, y]) => {
  const number = Math.round(clamp(x, 0, 1) * STEPS) * 512 + Math.round(clamp(y, 0, 1) * STEPS);
  return LETTERS[number >> 12] + LETTERS[number >> 6 & 63] + LETTERS[number & 63];
}).join("")).join(".");

const readStrokes = (text) => text.split(".").map((part) => (part.match(/.../g) ?? []).map((three) => {
  const number = Array.from(three).reduce((total, letter) =>
    64 * total + Math.max(LETTERS.indexOf(letter), 0), 0);
  return [(number >> 9) / STEPS, (number & 511) / STEPS];
})).filter((stroke) => stroke.length);

// Squared distance from (x, y) to the segment from a to b.
function distance(x, y, [ax, ay], [bx, by]) {
  const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
  const t = length ? clamp(((x - ax) * dx + (y - ay) * dy) / length, 0, 1) : 0;
  return (x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2;
}

// Ink in 0..1 of strokes in pixels, drawn with a round pen; an edge fades over one pixel.
function rasterize(strokes, radius) {
  return Float32Array.from({ length: PIXELS }, (_, i) => {
    const x = i % SIDE + 0.5, y = (i / SIDE | 0) + 0.5;
    let nearest = Infinity;
    for (const stroke of strokes)
      stroke.forEach((point, k) => {
        nearest = Math.min(nearest, distance(x, y, stroke[Math.max(k - 1, 0)], point));
      });
    return clamp(radius + 0.5 - Math.sqrt(nearest), 0, 1);
  });
}

// Where the ink of an image is in the middle, (x, y) in pixels.
function centre(image) {
  const total = sum(image);
  return [sum(image.map((ink, i) => ink * (i % SIDE + 0.5))) / total,
    sum(image.map((ink, i) => ink * ((i / SIDE | 0) + 0.5))) / total];
}

function centred(strokes) {
  const points = strokes.flat();
  if (!points.length) return new Float32Array(PIXELS);
  const [least, most] = [Math.min, Math.max].map((f) => [0, 1].map((k) => f(...points.map((p) => p[k]))));
  const scale = BOX / (Math.max(most[0] - least[0], most[1] - least[1]) + 2 * PEN);
  const moved = (by) => strokes.map((stroke) => stroke.map((p) =>
    p.map((value, k) => (value - (least[k] + most[k]) / 2) * scale + SIDE / 2 + by[k])));
  const [x, y] = centre(rasterize(moved([0, 0]), PEN * scale));
  return rasterize(moved([SIDE / 2 - x, SIDE / 2 - y]), PEN * scale);
}

const SHOE = writeStrokes([
  [[0.22, 0.3], [0.24, 0.46], [0.2, 0.62], [0.2, 0.7]], [[0.3, 0.32], [0.32, 0.48], [0.3, 0.66]],
  [[0.27, 0.4], [0.25, 0.66]], [[0.35, 0.4], [0.37, 0.66]],
  [[0.38, 0.34], [0.42, 0.5], [0.4, 0.66]], [[0.45, 0.36], [0.52, 0.5], [0.62, 0.6], [0.78, 0.64]],
  [[0.2, 0.7], [0.84, 0.7]], [[0.46, 0.46], [0.52, 0.6], [0.7, 0.64]],
  [[0.17, 0.76], [0.86, 0.76]]]);

// The image, ink in 0..1, of what the state calls the digit.
function imageOf(digit, test) {
  const image = digit.match(/^t(\d+)$/), noise = digit.match(/^noise(\d*)$/);
  if (image && image[1] * PIXELS < test.images.length)
    return test.images.slice(image[1] * PIXELS, (Number(image[1]) + 1) * PIXELS).map((grey) => grey / 255);
  if (noise) return Float32Array.from(fill(PIXELS, uniforms(Number(noise[1]))));
  return centred(strokesOf(digit));
}

// Its strokes, if it has some.
const strokesOf = (digit) => digit === "shoe" ? readStrokes(SHOE)
  : digit.startsWith("s.") ? readStrokes(digit.slice(2)) : [];

// Each pixel drawn once with its ink as probability, as the binary training images were.
function binarized(image) {
  const draw = uniforms(2008);
  return image.map((ink) => (draw() < ink ? 1 : 0));
}

// Strokes from mouse, finger, pen and keys on a canvas; `changed` hears each of them.
class Pad {
  constructor(canvas, changed) {
    Object.assign(this, { canvas, changed, strokes: [], pen: [0.5, 0.5], isDown: false, byKeys: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.byKeys = false;
      this.down(this.place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      const events = event.getCoalescedEvents?.() ?? [];
      if (!this.isDown || this.byKeys) return;
      for (const one of events.length ? events : [event]) this.move(this.place(one));
    });
    for (const name of ["pointerup", "pointercancel"])
      canvas.addEventListener(name, () => { if (!this.byKeys) this.isDown = false; });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.byKeys = this.isDown = false; this.changed(this.strokes); });
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  down(point) {
    this.isDown = true;
    this.pen = point;
    this.strokes.push([point]);
    this.changed(this.strokes);
  }

  move(point) {
    const stroke = this.strokes.at(-1), [x, y] = stroke.at(-1);
    if (Math.hypot(point[0] - x, point[1] - y) < 0.012) return;
    stroke.push(point);
    this.pen = point;
    this.changed(this.strokes);
  }

  key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) {
      const to = this.pen.map((value, k) => clamp(value + way[k] * (event.shiftKey ? 0.1 : 0.03), 0.05, 0.95));
      this.byKeys = true;
      if (this.isDown) this.move(to);
      else this.pen = to;
    } else if (event.key === " ") {
      this.byKeys = true;
      if (this.isDown) this.isDown = false;
      else this.down(this.pen);
    } else if (event.key === "Backspace") this.undo();
    else if (event.key === "Delete") this.clear();
    else return;
    event.preventDefault();
    this.changed(this.strokes);
  }

  undo() {
    this.strokes.pop();
    this.isDown = false;
    this.changed(this.strokes);
  }

  clear() {
    this.strokes = [];
    this.isDown = false;
    this.changed(this.strokes);
  }
}
