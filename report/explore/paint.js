// Images and charts on canvases, in the page's colours, light or dark.

const colors = {};
const FONT = "12px system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";

function readColors() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["paper", "panel", "ink", "soft", "line", "accent", "cold", "tile"]) {
    const hex = style.getPropertyValue(`--${name}`).trim();
    colors[name] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  }
}

const css = (name, alpha = 1) => `rgb(${colors[name].join(" ")} / ${alpha})`;

// The colour of a digit's class: ten hues, of neighbours one light and one dark.
const isDark = () => colors.ink[0] > 128;
const classColor = (digit, alpha = 1) =>
  `oklch(${(isDark() ? 0.66 : 0.5) + (digit % 2 ? 0 : 0.14)} 0.15 ${(digit * 108 + 25) % 360} / ${alpha})`;

// How numbers become colours: of ink in 0..1; of a code, negative cold and positive warm; of bits.
const mix = (from, to, share) => from.map((value, i) => value + clamp(share, 0, 1) * (to[i] - value));
const asInk = (value) => mix(colors.tile, colors.ink, value);
const asCode = (value) => mix(colors.tile, value < 0 ? colors.cold : colors.accent, Math.abs(value) / 3);
const asBits = (value) => mix(colors.tile, colors.accent, value / 8);

function paintImage(canvas, values, color = asInk) {
  const context = canvas.getContext("2d"), image = context.createImageData(SIDE, SIDE);
  for (let i = 0; i < PIXELS; i++) image.data.set([...color(values[i]), 255], 4 * i);
  context.putImageData(image, 0, 0);
}

// A row of small images, with a line below each if there are words.
function paintFilm(film, images, words = []) {
  while (film.children.length > images.length) film.lastChild.remove();
  while (film.children.length < images.length) {
    const item = film.appendChild(document.createElement("div"));
    const canvas = item.appendChild(document.createElement("canvas"));
    [canvas.width, canvas.height, canvas.className] = [SIDE, SIDE, "tile"];
    item.appendChild(document.createElement("small"));
  }
  images.forEach((image, i) => {
    const [canvas, small] = film.children[i].children;
    if (image) paintImage(canvas, image);
    small.textContent = words[i] ?? "";
  });
}

// A context whose unit is a CSS pixel, on an empty canvas, and its size.
function blankCanvas(canvas) {
  const { width, height } = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
  const [w, h] = [canvas.clientWidth || width, canvas.clientHeight || height];
  canvas.width = Math.round(w * ratio);
  canvas.height = Math.round(h * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = FONT;
  context.lineJoin = context.lineCap = "round";
  return { context, width: w, height: h };
}

// A chart with a horizontal axis: returns its context and how numbers become places.
function chart(canvas, [left, right], [low, high], ticks, { log = false, margin = 6 } = {}) {
  const { context, width, height } = blankCanvas(canvas), bottom = height - 20;
  const place = (value) => (log ? Math.log(value) : value);
  const [from, to] = [place(left), place(right)];
  const x = (value) => margin + (width - 2 * margin) * (place(value) - from) / (to - from);
  const y = (value) => bottom - (bottom - 8) * (value - low) / (high - low);
  context.strokeStyle = css("line");
  line(context, [[margin, bottom + 0.5], [width - margin, bottom + 0.5]]);
  context.fillStyle = css("soft");
  for (const [tick, words] of ticks) {
    const half = context.measureText(words).width / 2;
    context.textAlign = "center";
    context.fillText(words, clamp(x(tick), half, width - half), height - 5);
    line(context, [[x(tick), bottom], [x(tick), bottom + 4]]);
  }
  return { context, x, y, width, height, bottom };
}

function line(context, points) {
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x, y);
  context.stroke();
}

// Bars of how many of the values lie where, from left to right, and a mark at one value.
function histogram(canvas, values, [left, right], ticks, marked, words) {
  const bins = 60, counts = new Array(bins).fill(0);
  for (const value of values)
    counts[clamp(Math.floor(bins * (value - left) / (right - left)), 0, bins - 1)] += 1;
  const { context, x, y, bottom, width } = chart(canvas, [left, right], [0, Math.max(...counts) * 1.25], ticks);
  context.fillStyle = css("soft", 0.45);
  const step = (right - left) / bins;
  counts.forEach((count, i) => context.fillRect(
    x(left + i * step) + 0.5, y(count), x(step) - x(0) - 1, bottom - y(count)));
  if (marked === undefined) return;
  const at = clamp(x(marked), 6, width - 6);
  context.strokeStyle = context.fillStyle = css("accent");
  context.lineWidth = 2;
  line(context, [[at, 20], [at, bottom]]);
  const half = context.measureText(words).width / 2 + 2;
  context.textAlign = "center";
  context.fillText(words, clamp(at, half, width - half), 13);
}

// What a canvas shows, for those who do not see it.
const describe = (id, words) => $(id).setAttribute("aria-label", words);

// The share of sorted values that are below one.
const shareBelow = (sorted, value) => {
  let from = 0, to = sorted.length;
  while (from < to) {
    const middle = (from + to) >> 1;
    if (sorted[middle] < value) from = middle + 1;
    else to = middle;
  }
  return from / sorted.length;
};

const percent = (share) => share > 0 && share < 0.001 ? "less than 0.1 %"
  : `${(100 * share).toFixed(share > 0.1 && share < 0.995 || !share || share === 1 ? 0 : 1)} %`;
const minus = (number, digits) => number.toFixed(digits).replace("-", "\u2212");
