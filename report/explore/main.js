// Unpack the weights, make the panels that have some, and show the state of the address.

const networks = {}; // by the name of their run

async function inflate(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).arrayBuffer();
}

async function begin() {
  const shapes = JSON.parse($("shapes").textContent);
  const weights = readWeights(await inflate($("numbers").textContent), shapes), { test } = weights;
  const kinds = { "vae-z2": Vae, "vae-z20": Vae, gan: Gan, "nf-multiscale": Flow };
  for (const [name, Network] of Object.entries(kinds))
    if (weights[name]) networks[name] = new Network(weights[name]);
  for (const section of document.querySelectorAll("section[data-needs]")) {
    const run = section.dataset.needs;
    if (networks[run]) continue;
    section.querySelector(".bench").replaceWith(Object.assign(document.createElement("p"), {
      className: "missing",
      textContent: `This panel is left out: the weights of ${run} are not in code/weights.` }));
  }
  readColors();
  Object.assign(state, readHash(location.hash));
  if (networks["vae-z2"]) mapPanel(networks["vae-z2"], test, test["vae-z2 codes"], test["vae-z2 labels"]);
  if (networks["vae-z20"]) {
    padPanel(test);
    digitPanel(networks["vae-z20"], test, test["vae-z20 nll"]);
  }
  if (networks.gan) ganPanel(networks.gan, test);
  if (networks["nf-multiscale"]) flowPanel(networks["nf-multiscale"], test, test["nf-multiscale bits_per_dim"]);
  const show = () => change({ ...readHash(location.hash), look: 1 });
  const again = () => {
    readColors();
    change({ look: 1 });
  };
  addEventListener("hashchange", show);
  addEventListener("resize", again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  show();
  requestAnimationFrame(() => performance.mark("ready"));
}

begin();
