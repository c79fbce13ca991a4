// Line charts as SVG, drawn from plain arrays; colours come from the style sheet by class.

const NS = "http://www.w3.org/2000/svg";
const W = 640;
const H = 300;
const BOX = { left: 78, right: 14, top: 12, bottom: 44 };

function add(parent, name, attributes, text) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

// Round numbers within [low, high], about `wanted` of them.
export function ticks(low, high, wanted = 5) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) {
    found.push(Number((k * step).toPrecision(12)));
  }
  return found;
}

// plot(svg, {x: [from, to], y: [low, high], xLabel, yLabel, series, zero})
// A series is {kind: "line" | "band" | "dots" | "thin", color: class, x, y, y2}.
export function plot(svg, { x, y, xLabel, yLabel, series, zero = false }) {
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
  const px = (v) => BOX.left + ((v - x[0]) / (x[1] - x[0])) * (W - BOX.left - BOX.right);
  const py = (v) => H - BOX.bottom - ((v - y[0]) / (y[1] - y[0])) * (H - BOX.top - BOX.bottom);
  const points = (xs, ys) => xs.map((v, i) => `${px(v).toFixed(1)},${py(ys[i]).toFixed(1)}`);
  for (const v of ticks(y[0], y[1])) {
    const kind = zero && v === 0 ? "zero" : "grid";
    add(svg, "line", { x1: BOX.left, x2: W - BOX.right, y1: py(v), y2: py(v), class: kind });
    const label = v === 0 ? "0" : String(v).replace("-", "−");
    add(svg, "text", { x: BOX.left - 8, y: py(v) + 4, class: "tick end" }, label);
  }
  for (const v of ticks(Math.min(...x), Math.max(...x))) {
    add(svg, "text", { x: px(v), y: H - BOX.bottom + 18, class: "tick middle" }, String(v));
  }
  add(svg, "text", { x: (BOX.left + W) / 2, y: H - 6, class: "axis middle" }, xLabel);
  const place = `rotate(-90) translate(${-(H - BOX.bottom) / 2 - 6}, 16)`;
  add(svg, "text", { transform: place, class: "axis middle" }, yLabel);
  for (const { kind, color, x: xs, y: ys, y2 } of series) {
    if (kind === "band") {
      const edge = [...points(xs, ys), ...points(xs, y2).reverse()];
      add(svg, "polygon", { points: edge.join(" "), class: `band ${color}` });
    } else if (kind === "dots") {
      xs.forEach((v, i) => add(svg, "circle", { cx: px(v), cy: py(ys[i]), r: 5, class: color }));
    } else {
      add(svg, "polyline", { points: points(xs, ys).join(" "), class: `${kind} ${color}` });
    }
  }
}
