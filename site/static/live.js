// The live page: settings in, images and readings out. The networks are in worker.js.
import { CLASSES, SIDE, SIZE } from "./sampler.js";
import { plot } from "./plot.js";

const N = 10;
const NAMES = ["none", "nag"];
const $ = (id) => document.getElementById(id);
const form = $("live-form");
const bias = JSON.parse($("live-bias").textContent); // of the estimator itself, by t
let worker;
let run = 0;
let seed = 0;
let curves;

function biasAt(t) {
  const k = bias.t.findIndex((v) => v >= t);
  if (k <= 0) return bias.value[k === 0 ? 0 : bias.t.length - 1];
  const part = (t - bias.t[k - 1]) / (bias.t[k] - bias.t[k - 1]);
  return bias.value[k - 1] + part * (bias.value[k] - bias.value[k - 1]);
}

function draw(canvas, x) {
  const columns = canvas.clientWidth < 500 ? N / 2 : N;
  canvas.width = columns * SIDE;
  canvas.height = (N / columns) * SIDE;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < N; i++) {
    for (let p = 0; p < SIZE; p++) {
      const grey = Math.round(127.5 * x[i * SIZE + p] + 127.5); // the array clamps
      const row = Math.floor(i / columns) * SIDE + Math.floor(p / SIDE);
      const column = (i % columns) * SIDE + (p % SIDE);
      picture.data.set([grey, grey, grey, 255], 4 * (row * canvas.width + column));
    }
  }
  context.putImageData(picture, 0, 0);
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const signed = (v) => (v < 0 ? "−" : "+") + Math.abs(v).toFixed(4);

function chart() {
  const { t, rows } = curves;
  const all = rows.flat(2);
  const room = 0.06 * (Math.max(0.01, ...all) - Math.min(0, ...all));
  const series = rows.flatMap((perState, r) => [
    ...Array.from({ length: N }, (_, i) => ({
      kind: "thin",
      color: NAMES[r],
      x: t,
      y: perState.map((state) => state[i]),
    })),
  ]);
  rows.forEach((perState, r) =>
    series.push({ kind: "line", color: NAMES[r], x: t, y: perState.map(mean) }),
  );
  plot($("live-chart"), {
    x: [1, 0],
    y: [Math.min(0, ...all) - room, Math.max(0.01, ...all) + room],
    xLabel: "scheduled noise level t (sampling runs to the right)",
    yLabel: "read minus scheduled",
    zero: true,
    series,
  });
}

function show({ t, rows, readings }) {
  rows.forEach((x, r) => {
    const canvas = $(`live-${NAMES[r]}`);
    draw(canvas, x);
    canvas.setAttribute("aria-label", `${N} images ${r ? "with" : "without"} NAG, t = ${t.toFixed(2)}`);
  });
  if (t > 0) {
    curves.t.push(t);
    readings.forEach((found, r) => curves.rows[r].push(found.map((v) => v - t - biasAt(t))));
    chart();
  }
  $("live-status").textContent = `t = ${t.toFixed(2)}`;
}

function finish(seconds) {
  const late = curves.t.map((t, k) => [t, k]).filter(([t]) => t <= 0.2).map(([, k]) => k);
  const shift = curves.rows.map((row) => mean(late.map((k) => mean(row[k]))));
  $("live-status").textContent =
    `Done in ${seconds.toFixed(1)} s. Mean for t ≤ 0.2: without NAG ${signed(shift[0])}, ` +
    `with NAG ${signed(shift[1])}.`;
  form.dispatchEvent(new CustomEvent("sampled", { detail: { seconds, shift } }));
}

function heard({ data }) {
  if (data.id !== run) return;
  if (data.kind === "loading") $("live-status").textContent = "Loading the networks…";
  if (data.kind === "state") {
    form.last = data.rows;
    show(data);
  }
  if (data.kind === "done") finish(data.seconds);
  if (data.kind === "error") $("live-status").textContent = `This did not work: ${data.message}.`;
  if (data.kind === "done" || data.kind === "error") $("live-controls").disabled = false;
}

function settings() {
  const chosen = form.elements.class.value;
  return {
    sampler: form.elements.sampler.value,
    steps: Number(form.elements.steps.value),
    w: Number(form.elements.w.value),
    cfg: Number(form.elements.cfg.value),
    labels: Array.from({ length: N }, (_, i) => (chosen === "all" ? i % CLASSES : Number(chosen))),
    seed,
  };
}

form.addEventListener("input", ({ target }) => {
  if (target.type === "range") form.elements[`${target.name}-shown`].value = target.value;
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (event.submitter?.value === "other") seed = 1 + Math.floor(Math.random() * 1e9);
  worker ??= new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  worker.onmessage = heard;
  worker.onerror = (event) => heard({ data: { id: run, kind: "error", message: event.message } });
  curves = { t: [], rows: [[], []] };
  run += 1;
  const asked = settings(); // before the controls are disabled
  $("live-controls").disabled = true;
  worker.postMessage({ id: run, settings: asked });
});

for (const name of NAMES) draw($(`live-${name}`), new Float32Array(N * SIZE));
curves = { t: [], rows: [[], []] };
chart();
