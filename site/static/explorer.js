// The explorer: pictures, shifts, readings and places of one setting beside no guidance.
import { plot } from "./plot.js";

const SIDE = 28;
const $ = (id) => document.getElementById(id);
const form = $("explorer-form");
const url = (name) => new URL(`./explorer/${name}`, import.meta.url);
const data = await fetch(url("data.json")).then((answer) => {
  if (answer.ok) return answer.json();
  $("explorer-said").textContent =
    "The data of this page are not here: make them with `dvc repro site/dvc.yaml:explorer`.";
  throw new Error("no data");
});
const loaded = new Map();

function load(name) {
  if (!loaded.has(name)) {
    const picture = fetch(url(`${name}.webp`)).then((r) => r.blob()).then(createImageBitmap);
    const levels = fetch(url(`${name}.bin`)).then((r) => r.arrayBuffer()).then((b) => new Int16Array(b));
    loaded.set(name, Promise.all([picture, levels]));
  }
  return loaded.get(name);
}

function draw(canvas, sheet, row, images) {
  const columns = canvas.clientWidth < 500 ? 10 : 20;
  canvas.width = columns * SIDE;
  canvas.height = Math.ceil(images / columns) * SIDE;
  const context = canvas.getContext("2d");
  for (let i = 0; i < images; i++) {
    const place = [(i % columns) * SIDE, Math.floor(i / columns) * SIDE, SIDE, SIDE];
    context.drawImage(sheet, i * SIDE, row * SIDE, SIDE, SIDE, ...place);
  }
}

// Density of values by a Gaussian kernel of Scott's bandwidth, as nag.shift.posterior_kde has it.
function density(values, at) {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / (values.length - 1);
  const h = Math.sqrt(variance) * values.length ** -0.2;
  const scale = 1 / (values.length * h * Math.sqrt(2 * Math.PI));
  return at.map((x) => scale * values.reduce((sum, v) => sum + Math.exp(-0.5 * ((x - v) / h) ** 2), 0));
}

const range = (values, room = 0.05) => {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return [low - room * (high - low), high + room * (high - low)];
};
const signed = (v) => (v < 0 ? "−" : "+") + Math.abs(v).toFixed(4);
const interval = ({ value, low, high }) => `${signed(value)} [${signed(low)}, ${signed(high)}]`;

function shiftChart(set, row) {
  const series = [[0, "none"], [row, "nag"]].flatMap(([k, color]) => [
    { kind: "band", color, x: set.times, y: set.shifts[k].low, y2: set.shifts[k].high },
    { kind: "line", color, x: set.times, y: set.shifts[k].value },
  ]);
  const all = series.flatMap((s) => [...s.y, ...(s.y2 ?? [])]);
  plot($("explorer-shift"), {
    x: [1, 0], y: range([0, ...all]), zero: true, series,
    xLabel: "noise level t (sampling runs to the right)", yLabel: "noise shift",
  });
}

function posteriorChart(set, levels, row, k) {
  const t = set.times[k];
  const count = set.times.length;
  const of = (first, n) =>
    Array.from({ length: n }, (_, i) => t + levels[(first + i) * count + k] * data.unit);
  const total = levels.length / count;
  const first = set.shifts.length * set.images;
  const groups = [
    ["control", of(first, total - first)],
    ["none", of(0, set.images)],
    ["nag", of(row * set.images, set.images)],
  ];
  const [low, high] = range(groups.flatMap(([, values]) => values), 0.1);
  const at = Array.from({ length: 161 }, (_, i) => low + ((high - low) * i) / 160);
  const series = groups.map(([color, values]) => ({ kind: "line", color, x: at, y: density(values, at) }));
  plot($("explorer-posterior"), {
    x: [low, high], y: [0, 1.05 * Math.max(...series.flatMap((s) => s.y))], series,
    xLabel: "level that the estimator reads", yLabel: "density over images",
  });
}

function mapChart(family, w, cfg) {
  const places = data.places[family];
  const here = places.filter((p) => p.w === w && p.cfg === cfg);
  $("explorer-map-said").textContent =
    "Distance and recall of all settings, with the deterministic sampler. " +
    (here.length ? "Blue is this one, orange no guidance." : "This one is not measured.");
  const dots = (found, color) => ({
    kind: "dots", color, x: found.map((p) => p.fd_inf), y: found.map((p) => p.recall),
  });
  plot($("explorer-map"), {
    x: range(places.map((p) => p.fd_inf)), y: range(places.map((p) => p.recall), 0.15),
    xLabel: "bias-corrected Fréchet distance (smaller is better)", yLabel: "recall",
    series: [dots(places, "control"), dots(places.filter((p) => p.w === 0 && p.cfg === 1), "none"), dots(here, "nag")],
  });
}

async function show() {
  const family = form.elements.family.value;
  const sampler = form.elements.sampler.value;
  const name = `${family}-${sampler}`;
  const set = data.sets[name];
  const w = data.w[family][form.elements.w.value];
  const cfg = data.cfg[form.elements.cfg.value];
  const row = form.elements.w.value * data.cfg.length + Number(form.elements.cfg.value);
  form.elements["w-shown"].value = w;
  form.elements["cfg-shown"].value = cfg;
  const level = $("explorer-level");
  level.max = set.times.length - 1;
  if (!level.dataset.moved) level.value = set.times.findIndex((t) => t <= 0.2);
  const k = Number(level.value);
  $("explorer-level-shown").value = set.times[k].toFixed(2);
  const called = `w = ${w}, CFG ${cfg}`;
  $("explorer-name").textContent = called;
  $("explorer-nag").setAttribute("aria-label", `Forty images of the same seeds, ${called}`);
  const late = `Late shift (σ/α ≤ 0.25): no guidance ${interval(set.shifts[0].late)}`;
  $("explorer-said").textContent = `${late}; ${called}: ${interval(set.shifts[row].late)}.`;
  shiftChart(set, row);
  mapChart(family, w, cfg);
  const [sheet, levels] = await load(name);
  if (name !== `${form.elements.family.value}-${form.elements.sampler.value}`) return;
  draw($("explorer-none"), sheet, 0, set.images);
  draw($("explorer-nag"), sheet, row, set.images);
  posteriorChart(set, levels, row, k);
}

form.addEventListener("input", show);
$("explorer-level").addEventListener("input", ({ target }) => {
  target.dataset.moved = "yes";
  show();
});
form.addEventListener("submit", (event) => event.preventDefault());
await show();
