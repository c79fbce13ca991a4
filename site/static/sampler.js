// Sampling as nag/samplers/one_step.py and nag/guidance.py do it, for SiT-mini on its linear path.
// A state is a Float32Array of n images of SIZE pixels. Nothing here knows of the page.

export const SIDE = 28;
export const SIZE = SIDE * SIDE;
export const CLASSES = 10; // the label of "no class" too

// Grids from noise (1) to data (0): uniform, or SiT's for the SDE, whose last step starts at 0.04.
export function times(sampler, steps) {
  const even = (n, end) => Array.from({ length: n + 1 }, (_, k) => 1 + ((end - 1) * k) / n);
  return sampler === "euler" ? even(steps, 0) : [...even(steps - 1, 0.04), 0];
}

// Standard normal numbers from a seed: mulberry32 and Box-Muller.
export function normal(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return (((z ^ (z >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
  return (n) => {
    const out = new Float32Array(n);
    for (let i = 0; i < n; i += 2) {
      const radius = Math.sqrt(-2 * Math.log(uniform()));
      const angle = 2 * Math.PI * uniform();
      out[i] = radius * Math.cos(angle);
      if (i + 1 < n) out[i + 1] = radius * Math.sin(angle);
    }
    return out;
  };
}

function joined(parts) {
  const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let place = 0;
  for (const part of parts) {
    all.set(part, place);
    place += part.length;
  }
  return all;
}

// Guided velocities of several rows in one call. A row is {x, w, cfg}; w = 0 and cfg = 1 are off:
//   d = f + w (f - f without noise level) + (cfg - 1) (f - f without class)
async function guided(velocity, rows, t, labels) {
  const n = labels.length;
  const branches = rows.flatMap((row, r) =>
    [
      { r, weight: 0, label: null, drop: false },
      { r, weight: row.w, label: null, drop: true },
      { r, weight: row.cfg - 1, label: CLASSES, drop: false },
    ].filter((branch, k) => k === 0 || branch.weight !== 0),
  );
  const found = await velocity(
    joined(branches.map((branch) => rows[branch.r].x)),
    t,
    branches.flatMap((branch) => (branch.label === null ? labels : labels.map(() => branch.label))),
    branches.flatMap((branch) => labels.map(() => branch.drop)),
  );
  const of = (k) => found.subarray(k * n * SIZE, (k + 1) * n * SIZE);
  return rows.map((row, r) => {
    const own = of(branches.findIndex((branch) => branch.r === r));
    const d = Float32Array.from(own);
    branches.forEach((branch, k) => {
      if (branch.r !== r || branch.weight === 0) return;
      const other = of(k);
      for (let i = 0; i < d.length; i++) d[i] += branch.weight * (own[i] - other[i]);
    });
    return d;
  });
}

// Yields {k, t, rows, readings} for every state. `velocity(x, t, labels, drop)` and `read(x)` are
// the networks, `settings` {sampler, steps, w, cfg, labels, noise, draw}. Row 0 has no NAG, row 1
// has; both start from the same noise and get the same noise at every step.
export async function* sample(velocity, read, settings) {
  const { sampler, steps, w, cfg, labels, noise, draw } = settings;
  const rows = [0, w].map((weight) => ({ x: Float32Array.from(noise), w: weight, cfg }));
  const grid = times(sampler, steps);
  for (let k = 0; ; k++) {
    const t = grid[k];
    const found = await read(joined(rows.map((row) => row.x)));
    const readings = rows.map((_, r) => found.slice(r * labels.length, (r + 1) * labels.length));
    yield { k, t, rows: rows.map((row) => Float32Array.from(row.x)), readings };
    if (k === steps) return;
    const s = grid[k + 1];
    const velocities = await guided(velocity, rows, t, labels);
    const stochastic = sampler !== "euler";
    const fresh = stochastic && k < steps - 1 ? draw(noise.length) : null;
    const spread = Math.sqrt(2 * t * (t - s));
    rows.forEach((row, r) => {
      const v = velocities[r];
      for (let i = 0; i < v.length; i++) {
        // Euler-Maruyama with D = t: the drift v - D score is x + (2 - t) v on this path.
        const drift = stochastic ? row.x[i] + (2 - t) * v[i] : v[i];
        row.x[i] += (s - t) * drift + (fresh ? spread * fresh[i] : 0);
      }
    });
  }
}
