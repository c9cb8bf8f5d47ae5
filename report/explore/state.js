// What is shown, kept in the URL's hash, so that an address is a view. Panels watch the parts of
// the state that they draw, and are drawn once a frame at most; long computations are generators
// that get some milliseconds of each frame.

const DEFAULTS = {
  z: [-0.2, -0.4], // the map: a point, and a path in the pen's notation
  path: "JvbL_LPe1TWbWuBY9rZtZZlJY05YEqXsZX8IYj3ZLkZrQZi4Y6ZXxzWhNVQsUgU",
  digit: "t3", // test image 3; or blank, shoe, noise, or strokes in the pen's notation
  a: 23, b: 37, turn: 0, heat: 1, // the GAN: seeds, degrees, temperature
  seed: 1, cold: 0.8, // the flow: seed and temperature of its samples
};
const state = { ...DEFAULTS };
const LIMITS = { a: [0, 99999], b: [0, 99999], turn: [0, 359], heat: [0, 2], seed: [0, 99999], cold: [0, 1.5] };
const SLICE = 10; // milliseconds of computing a frame

const watchers = [], jobs = new Map(), dirty = new Set();
let asked = false, saving = 0;

function watch(keys, draw) {
  watchers.push({ keys, draw });
}

// Take new values of the state; "look" and "pen" are none, but are drawn anew.
function change(values) {
  for (const key of Object.keys(values)) if (key in DEFAULTS) state[key] = values[key];
  for (const watcher of watchers) if (watcher.keys.some((key) => key in values)) dirty.add(watcher);
  clearTimeout(saving);
  saving = setTimeout(() => history.replaceState(null, "", hash() || location.pathname), 300);
  ask();
}

// Run a generator beside the frames; a later one takes the place of its namesake.
function start(name, job) {
  jobs.set(name, job);
  ask();
}

function ask() {
  if (!asked) requestAnimationFrame(frame);
  asked = true;
}

function frame() {
  asked = false;
  for (const watcher of [...dirty]) {
    dirty.delete(watcher);
    watcher.draw();
  }
  for (const [name, job] of jobs) {
    const end = performance.now() + SLICE / jobs.size;
    do if (job.next().done && jobs.get(name) === job) jobs.delete(name);
    while (jobs.get(name) === job && performance.now() < end);
  }
  if (jobs.size || dirty.size) ask();
}

function hash() {
  const parts = Object.keys(DEFAULTS).filter((key) => String(state[key]) !== String(DEFAULTS[key]));
  return parts.length ? "#" + parts.map((key) => `${key}=${state[key]}`).join("&") : "";
}

// The state of an address; what cannot be read stays as it is by default.
function readHash(text) {
  const given = new Map(text.replace(/^#/, "").split("&").map((part) => part.split("=")));
  return Object.fromEntries(Object.entries(DEFAULTS).map(([key, usual]) => {
    const value = given.get(key);
    if (value === undefined) return [key, usual];
    if (Array.isArray(usual)) {
      const numbers = value.split(",").map(Number);
      return [key, numbers.length === usual.length && numbers.every(Number.isFinite) ? numbers : usual];
    }
    if (typeof usual === "string") return [key, value];
    const [least, most] = LIMITS[key], number = Number(value);
    return [key, value !== "" && Number.isFinite(number) ? clamp(number, least, most) : usual];
  }));
}

// The seed that somebody has typed.
const seedIn = (id) => clamp(Math.round(Number($(id).value)) || 0, ...LIMITS.seed);

const clamp = (value, least, most) => Math.min(Math.max(value, least), most);
const $ = (id) => document.getElementById(id);
