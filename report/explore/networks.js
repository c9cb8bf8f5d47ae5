// The networks, in plain typed arrays. Each class is the Python class that it names, in eval mode;
// layers have PyTorch's names. Features of one cell lie together: (cells, channels), not (channels,
// cells), so that a convolution is a product of its rows with the 9 x C values around each cell.

// Numbers -----------------------------------------------------------------------------------------

const PIXELS = 784, SIDE = 28, LEVELS = 256;

const sigmoid = (a) => 1 / (1 + Math.exp(-a));
const silu = (a) => a * sigmoid(a);
const logSigmoid = (a) => Math.min(a, 0) - Math.log1p(Math.exp(-Math.abs(a)));
const sum = (values) => values.reduce((total, value) => total + value, 0);
const logAddExp = (a, b) => Math.max(a, b) + Math.log1p(Math.exp(-Math.abs(a - b)));

// N(0, 1): density, tail Q(z) = 1 - Phi(z), and the z of a tail. Above 2 the tail is a continued
// fraction, below a series (Marsaglia 2004, "Evaluating the normal distribution"); float64.
const density = (z) => Math.exp(-0.5 * z * z) / Math.sqrt(2 * Math.PI);

function tail(z) {
  if (z < 0) return 1 - tail(-z);
  if (z > 2) {
    let fraction = 0;
    for (let k = 200; k > 0; k--) fraction = k / (z + fraction);
    return density(z) / (z + fraction);
  }
  let term = z, series = z;
  for (let k = 3; term > 1e-17; k += 2) series += term *= z * z / k;
  return 0.5 - density(z) * series;
}

function tailInverse(p) {
  if (p > 0.5) return -tailInverse(1 - p);
  let z = Math.sqrt(-2 * Math.log(2 * p)); // Q(z) <= exp(-z^2 / 2) / 2
  for (let i = 0; i < 100; i++) { // Newton on log Q(z) = log p, which is concave
    const q = tail(z), step = Math.log(q / p) * q / density(z);
    z += step;
    if (Math.abs(step) < 1e-14 * (1 + z)) break;
  }
  return z;
}

// Draws that repeat: mulberry32 for uniform ones, Box & Muller for normal ones.
function uniforms(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function normals(seed) {
  const draw = uniforms(seed);
  return () => Math.sqrt(-2 * Math.log(1 - draw())) * Math.cos(2 * Math.PI * draw());
}

const fill = (n, draw) => Float64Array.from({ length: n }, draw);

// Layers ------------------------------------------------------------------------------------------

// Weights by network and name, from the page's block: all floats, all 16-bit, all 8-bit numbers; each
// row of a matrix of whole numbers has a scale among the floats (report/page.py).
function readWeights(buffer, shapes) {
  const all = Object.values(shapes).flatMap(Object.values);
  const n = sum(all.map((shape) => shape[0])); // floats: rows of matrices, other arrays themselves
  const long = sum(all.map(([rows, columns, bytes]) => (bytes === 2 ? rows * columns : 0)));
  const floats = new Float32Array(buffer, 0, n);
  const whole = { 2: new Int16Array(buffer, 4 * n, long), 1: new Int8Array(buffer, 4 * n + 2 * long) };
  const next = { 2: 0, 1: 0 };
  let f = 0;
  const read = ([rows, columns, bytes]) => {
    const values = floats.subarray(f, f += rows);
    if (columns === undefined) return values;
    const matrix = new Float32Array(rows * columns), numbers = whole[bytes];
    for (let i = 0; i < rows; i++)
      for (let j = i * columns; j < (i + 1) * columns; j++) matrix[j] = numbers[next[bytes]++] * values[i];
    return matrix;
  };
  return mapValues(shapes, (arrays) => mapValues(arrays, read));
}

const mapValues = (object, f) =>
  Object.fromEntries(Object.entries(object).map(([key, value]) => [key, f(value)]));

const layer = (weights, name) => ({ weight: weights[name + ".weight"], bias: weights[name + ".bias"] });

// The product of n numbers of a, from i on, with those of b from j on.
function dot(a, i, b, j, n) {
  let total = 0;
  for (let k = 0; k < n; k++) total += a[i + k] * b[j + k];
  return total;
}

// nn.Linear on each of `count` rows of x: (count, columns) -> (count, rows). Four rows of weights at
// a time, so that each x is read once for them: four times as fast as one, if x is a Float32Array
// always, so that engines compile the loop for nothing else.
function linear({ weight, bias }, x, count = 1) {
  const columns = x.length / count, rows = weight.length / columns, y = new Float32Array(count * rows);
  for (let n = 0; n < count; n++) {
    const start = n * columns, to = n * rows, whole = rows - rows % 4;
    for (let i = 0; i < whole; i += 4) {
      let a = i * columns, b = a + columns, c = b + columns, d = c + columns;
      let atA = 0, atB = 0, atC = 0, atD = 0;
      for (let j = start; j < start + columns; j++) {
        const value = x[j];
        atA += weight[a++] * value;
        atB += weight[b++] * value;
        atC += weight[c++] * value;
        atD += weight[d++] * value;
      }
      y[to + i] = atA;
      y[to + i + 1] = atB;
      y[to + i + 2] = atC;
      y[to + i + 3] = atD;
    }
    for (let i = whole; i < rows; i++) y[to + i] = dot(weight, i * columns, x, start, columns);
    if (bias) for (let i = 0; i < rows; i++) y[to + i] += bias[i];
  }
  return y;
}

// nn.Conv2d(C, rows, 3, padding=1) on a grid of side x side cells: (cells, C) -> (cells, rows).
function convolve(part, x, side) {
  const channels = x.length / side ** 2, around = new Float32Array(9 * x.length);
  for (let row = 0; row < side; row++)
    for (let column = 0; column < side; column++)
      for (let k = 0; k < 9; k++) {
        const r = row + (k / 3 | 0) - 1, c = column + k % 3 - 1;
        if (r >= 0 && r < side && c >= 0 && c < side) {
          const from = (r * side + c) * channels;
          around.set(x.subarray(from, from + channels), ((row * side + column) * 9 + k) * channels);
        }
      }
  return linear(part, around, side ** 2);
}

// (x - mean) / deviation over groups of `size` neighbours, then each of C channels times its weight
// plus its bias: nn.LayerNorm with size = C, nn.GroupNorm(1, C) with size = all.
function normalize({ weight, bias }, x, size) {
  const y = new Float32Array(x.length), channels = weight.length;
  for (let start = 0; start < x.length; start += size) {
    const group = x.subarray(start, start + size);
    const mean = sum(group) / size;
    const variance = group.reduce((total, value) => total + (value - mean) ** 2, 0) / size;
    const scale = 1 / Math.sqrt(variance + 1e-5);
    for (let i = start; i < start + size; i++)
      y[i] = (x[i] - mean) * scale * weight[i % channels] + bias[i % channels];
  }
  return y;
}

function softmax(logits) {
  const most = Math.max(...logits), exp = logits.map((logit) => Math.exp(logit - most)), total = sum(exp);
  return exp.map((value) => value / total);
}

const add = (x, y) => x.map((value, i) => value + y[i]);

// The variational autoencoder: VAE in code/a3_vae_template.py ---------------------------------------

class Vae {
  constructor(weights) {
    this.encoder = ["body.1", "body.3", "head"].map((name) => layer(weights, `encoder.${name}`));
    this.decoder = [0, 2, 4].map((i) => layer(weights, `decoder.net.${i}`));
  }

  // Mean and log std of q(z|x) for pixels x in {0, 1}.
  posterior(x) {
    const [first, second, head] = this.encoder;
    const both = linear(head, linear(second, linear(first, Float32Array.from(x)).map(silu)).map(silu));
    const d = both.length / 2;
    return { mean: both.subarray(0, d), logStd: both.subarray(d) };
  }

  // Logits of the Bernoulli means.
  logits(z) {
    const [first, second, last] = this.decoder;
    return linear(last, linear(second, linear(first, Float32Array.from(z)).map(silu)).map(silu));
  }

  decode(z) {
    return this.logits(z).map(sigmoid);
  }

  // KL(q(z|x) || p(z)) in nats.
  kl({ mean, logStd }) {
    return sum(Array.from(mean, (m, i) => 0.5 * (Math.exp(2 * logStd[i]) + m * m - 1 - 2 * logStd[i])));
  }

  // log p(x, z) - log q(z|x) at z = mean + std * eps, in nats: its mean over eps is the ELBO, the
  // mean of its exponential p(x) (Burda et al. 2016).
  logWeight(x, { mean, logStd }, eps) {
    const z = eps.map((e, i) => mean[i] + Math.exp(logStd[i]) * e);
    const logRatio = sum(z.map((value, i) => 0.5 * (eps[i] ** 2 - value ** 2) + logStd[i]));
    const logits = this.logits(z);
    let logLikelihood = 0; // log sigmoid(-a) = log sigmoid(a) - a
    for (let i = 0; i < PIXELS; i++) logLikelihood += logSigmoid(logits[i]) - (1 - x[i]) * logits[i];
    return logRatio + logLikelihood;
  }
}

// The generative adversarial network: Generator and Discriminator in code/a3_gan_template.py ----------

const leaky = (a) => (a > 0 ? a : 0.2 * a);

class Gan {
  constructor(weights) {
    this.generator = [0, 1, 2, 3, 4].map((i) => layer(weights, `generator.${i}`));
    this.discriminator = [1, 3, 6].map((i) => layer(weights, `discriminator.${i}`));
    this.hasDiscriminator = this.discriminator[0].weight !== undefined;
    this.dimensions = this.generator[0].weight.length / this.generator[0].bias.length;
  }

  // G(z), in [-1, 1]; its batch normalisation is folded into the layers.
  generate(z) {
    const last = this.generator.length - 1;
    return this.generator.reduce((h, part, i) => linear(part, h).map(i < last ? leaky : Math.tanh),
      Float32Array.from(z));
  }

  // D's last features of an image in [-1, 1].
  features(x) {
    const [first, second] = this.discriminator;
    return linear(second, linear(first, Float32Array.from(x)).map(leaky)).map(leaky);
  }

  // D's logit of the first of a group of images, by their features. One more feature is how much
  // the group differs (MinibatchDeviation in code/a3/gan_losses.py), if D was trained with it.
  logit(group) {
    const last = this.discriminator[2], h = group[0];
    if (last.weight.length === h.length) return linear(last, h)[0];
    const deviations = Array.from(h, (_, f) => {
      const mean = sum(group.map((one) => one[f])) / group.length;
      return Math.sqrt(sum(group.map((one) => (one[f] - mean) ** 2)) / group.length + 1e-8);
    });
    return linear(last, Float32Array.of(...h, sum(deviations) / h.length))[0];
  }
}

// The multi-scale flow: Model in code/nf_multiscale.py -----------------------------------------------

const range = (n) => Array.from({ length: n }, (_, i) => i);

// Every so many pixels of an image.
function pixelGrid(spacing, top, left) {
  const cells = range(SIDE / spacing);
  return cells.flatMap((r) => cells.map((c) => (r * spacing + top) * SIDE + c * spacing + left));
}

// The distribution of one pixel from its features (Pixels): first whether there is ink, a, then
// which of the levels 1..255, q. `levels` are computed only where they are needed.
class Pixel {
  constructor(weights, name) {
    [this.norm, this.ink, this.hidden, this.levels] = ["norm", "ink", "hidden", "levels"]
      .map((part) => layer(weights, `${name}.${part}`));
  }

  at(features, bias) {
    const h = normalize(this.norm, features, features.length);
    const ink = linear(this.ink, h)[0];
    const levels = () => { // probabilities of the levels 1..255
      const logits = linear(this.levels, linear(this.hidden, h).map(silu));
      return softmax(Array.from(logits, (logit, k) => logit + bias[k]));
    };
    return { ink, levels };
  }

  // log P(x) in nats, and the code z = Q^-1(S + (1 - u) P(x)), S = P(X > x), u in (0, 1).
  encode({ ink, levels }, x, u) {
    const a = sigmoid(ink);
    const code = (upper) => tailInverse(Math.min(Math.max(upper, 1e-300), 1 - 2 ** -53));
    if (x === 0) return { logP: logSigmoid(-ink), z: code(a + (1 - a) * (1 - u)) };
    const q = levels(), above = sum(q.slice(x));
    return { logP: logSigmoid(ink) + Math.log(q[x - 1]), z: code(a * (above + q[x - 1] * (1 - u))) };
  }

  // The inverse, whatever u was: the x with S <= Q(z) < S + P(x).
  decode({ ink, levels }, z) {
    const a = sigmoid(ink), share = tail(z) / a;
    if (share >= 1) return 0;
    const q = levels();
    let x = LEVELS - 1;
    for (let above = q[x - 1]; above <= share && x > 1; x--) above += q[x - 2];
    return x;
  }
}

const HEADS = 4, CELLS = SIDE / 4; // of the attention; on a side of the coarse grid
const CORNERS = [[0, 0], [2, 2], [0, 2], [2, 0]]; // the pixels of a cell as they are drawn
const NEAR = [[0, -1], [-1, -1], [-1, 0], [-1, 1], [0, -2], [-2, 0], [-2, -1], [-2, 1], [-1, -2], [-1, 2]];

class Flow {
  constructor(weights) {
    const part = (name) => layer(weights, name);
    const count = (name) => range(99).findIndex((i) => !weights[name(i)]);
    this.embedding = weights["embed.weight"];
    this.near = part("coarse.near");
    this.seen = part("coarse.seen");
    this.cellPlace = weights["coarse.place"];
    this.layers = range(count((i) => `coarse.layers.${i}.mix.weight`)).map((i) =>
      ["attention_norm", "queries_keys_values", "mix", "norm", "think.0", "think.2"]
        .map((name) => part(`coarse.layers.${i}.${name}`)));
    this.norm = part("coarse.norm");
    this.repeat = weights.repeat;
    this.corners = CORNERS.map((_, i) =>
      ({ corner: part(`corners.${i}`), pixel: new Pixel(weights, `corner_pixels.${i}`) }));
    this.place = weights.place;
    this.steps = range(3).map((i) => ({
      read: part(`steps.${i}.read`),
      readSeen: part(`steps.${i}.read_seen`),
      repeat: weights[`steps.${i}.repeat`],
      pixel: new Pixel(weights, `steps.${i}.pixels`),
      blocks: range(count((b) => `steps.${i}.blocks.${b}.layers.0.weight`))
        .map((b) => [0, 2, 4].map((k) => part(`steps.${i}.blocks.${b}.layers.${k}`))),
    }));
    const corners = CORNERS.map(([top, left]) => pixelGrid(4, top, left));
    this.cells = range(CELLS ** 2).map((cell) => corners.map((pixels) => pixels[cell]));
    this.fine = [[0, 0], [1, 1], [0, 1], [1, 0]].map(([top, left]) => pixelGrid(2, top, left));
  }

  // Embedded pixels; one outside of the image has the last embedding.
  embed(x, pixels) {
    const width = this.embedding.length / (LEVELS + 1), out = new Float32Array(pixels.length * width);
    pixels.forEach((pixel, i) => {
      const level = pixel === undefined ? LEVELS : x[pixel];
      out.set(this.embedding.subarray(level * width, (level + 1) * width), i * width);
    });
    return out;
  }

  // The pixels of the cells near one, which it reads directly (cells_near).
  pixelsNear(cell) {
    return NEAR.flatMap(([down, right]) => {
      const row = (cell / CELLS | 0) + down, column = cell % CELLS + right;
      const inside = row >= 0 && column >= 0 && column < CELLS;
      return inside ? this.cells[row * CELLS + column] : Array(CORNERS.length).fill();
    });
  }

  // Features of a cell from those before it (Cells, Layer); `past` holds their keys and values.
  cellFeatures(x, cell, seen, past) {
    const width = this.norm.bias.length, size = width / HEADS;
    let h = add(linear(this.near, this.embed(x, this.pixelsNear(cell))), linear(this.seen, seen));
    h = h.map((value, i) => value + this.cellPlace[cell * width + i]);
    this.layers.forEach(([attentionNorm, project, mix, norm, widen, narrow], depth) => {
      const both = linear(project, normalize(attentionNorm, h, width)); // query, key, value
      past[depth].push(both);
      const mixed = new Float32Array(width);
      for (let head = 0; head < width; head += size) {
        const shares = softmax(past[depth].map((before) =>
          dot(both, head, before, width + head, size) / Math.sqrt(size)));
        past[depth].forEach((before, t) => {
          for (let i = head; i < head + size; i++) mixed[i] += shares[t] * before[2 * width + i];
        });
      }
      h = add(h, linear(mix, mixed));
      h = add(h, linear(narrow, linear(widen, normalize(norm, h, width)).map(silu)));
    });
    return normalize(this.norm, h, width);
  }

  // Features of all cells of the fine grid before a group is drawn (Step, Block); rests, too.
  *stepFeatures(step, h, embedded, seen) {
    const side = SIDE / 2, bySeen = linear(step.readSeen, seen);
    h = add(h, convolve(step.read, embedded, side)).map((value, i) => value + bySeen[i % bySeen.length]);
    for (const [norm, wide, narrow] of step.blocks) {
      const inner = convolve(wide, normalize(norm, h, h.length).map(silu), side).map(silu);
      h = add(h, linear(narrow, inner, side ** 2));
      yield;
    }
    return h;
  }

  // Go through the pixels once: couple(part, distribution, pixel) gives the value of each from its
  // distribution given those before. A generator, which rests between parts so that the page can
  // paint; it returns the image (784,), whole numbers.
  *scan(couple) {
    const x = new Uint8Array(PIXELS), counts = new Float32Array(LEVELS), past = this.layers.map(() => []);
    for (let cell = 0; cell < this.cells.length; cell++) {
      const seen = counts.map(Math.log1p), pixels = this.cells[cell];
      const h = this.cellFeatures(x, cell, seen, past);
      this.corners.forEach(({ corner, pixel }, i) => {
        const known = Float32Array.of(...h, ...this.embed(x, pixels.slice(0, i)));
        const bias = range(LEVELS - 1).map((k) => this.repeat[i * (LEVELS - 1) + k] * seen[k + 1]);
        x[pixels[i]] = couple(pixel, pixel.at(linear(corner, known).map(silu), bias), pixels[i]);
      });
      for (const pixel of pixels) counts[x[pixel]] += 1;
      yield;
    }
    let h = this.place;
    for (const [i, step] of this.steps.entries()) {
      const seen = counts.map(Math.log1p), bias = step.repeat.map((repeat, k) => repeat * seen[k + 1]);
      h = yield* this.stepFeatures(step, h, this.embed(x, this.fine[i]), seen);
      const drawn = this.fine[i + 1], width = h.length / drawn.length;
      drawn.forEach((pixel, cell) => {
        const distribution = step.pixel.at(h.subarray(cell * width, (cell + 1) * width), bias);
        x[pixel] = couple(step.pixel, distribution, pixel);
      });
      for (const pixel of drawn) counts[x[pixel]] += 1;
      yield;
    }
    return x;
  }

  // The code z of an image x (784,) in 0..255 with noise u, and log P of each pixel in nats.
  *encode(x, u) {
    const z = new Float64Array(PIXELS), logP = new Float64Array(PIXELS);
    yield* this.scan((part, distribution, pixel) => {
      ({ z: z[pixel], logP: logP[pixel] } = part.encode(distribution, x[pixel], u[pixel]));
      return x[pixel];
    });
    return { z, logP };
  }

  // The image of a code: the exact inverse.
  decode(z) {
    return this.scan((part, distribution, pixel) => part.decode(distribution, z[pixel]));
  }
}
