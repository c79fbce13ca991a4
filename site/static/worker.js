// Owns the two networks: SiT-mini and the noise-level estimator, run by onnxruntime-web.
// Messages in: {id, settings}. Out: {id, kind: "loading" | "state" | "done" | "error", ...}.
import * as ort from "./vendor/ort.wasm.min.mjs";
import { SIDE, SIZE, normal, sample } from "./sampler.js";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;

const bytes = async (name) => {
  const answer = await fetch(new URL(`./live/${name}`, import.meta.url));
  if (!answer.ok) throw new Error(`${name} could not be loaded (${answer.status})`);
  return new Uint8Array(await answer.arrayBuffer());
};

async function session(graph, weights) {
  const [model, data] = await Promise.all([bytes(graph), bytes(weights)]);
  return ort.InferenceSession.create(model, {
    executionProviders: ["wasm"],
    externalData: [{ path: weights, data }],
  });
}

const images = (x) => new ort.Tensor("float32", x, [x.length / SIZE, 1, SIDE, SIDE]);

async function load() {
  const [net, estimator, noise] = await Promise.all([
    session("sit.onnx", "sit.safetensors"),
    session("estimator.onnx", "estimator-linear.safetensors"),
    bytes("noise.bin"),
  ]);
  return {
    velocity: async (x, t, labels, drop) => {
      const n = labels.length;
      const found = await net.run({
        x: images(x),
        t: new ort.Tensor("float32", new Float32Array(n).fill(t), [n]),
        y: new ort.Tensor("int64", BigInt64Array.from(labels, BigInt), [n]),
        drop: new ort.Tensor("bool", Uint8Array.from(drop, Number), [n]),
      });
      return found.v.data;
    },
    read: async (x) => Array.from((await estimator.run({ x: images(x) })).level.data),
    noise: new Float32Array(noise.buffer),
  };
}

let networks;
let newest = 0;

self.onmessage = async ({ data: { id, settings } }) => {
  newest = id;
  try {
    if (!networks) {
      self.postMessage({ id, kind: "loading" });
      networks = load();
    }
    const { velocity, read, noise } = await networks;
    const draw = normal(settings.seed);
    const start = settings.seed === 0 ? noise : draw(settings.labels.length * SIZE);
    const began = performance.now();
    for await (const state of sample(velocity, read, { ...settings, noise: start, draw })) {
      if (newest !== id) return;
      self.postMessage({ id, kind: "state", ...state });
    }
    self.postMessage({ id, kind: "done", seconds: (performance.now() - began) / 1000 });
  } catch (error) {
    networks = undefined;
    self.postMessage({ id, kind: "error", message: String(error.message ?? error) });
  }
};
