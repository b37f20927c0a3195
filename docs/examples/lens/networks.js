// Networks as files of ONNX: loaded, compared with their checksums, and run.

const RUNTIME = new URL("vendor/onnxruntime-web-1.22.0/", import.meta.url).href;
const MODELS = new URL("models/", import.meta.url).href;

// What is wrong, in a sentence for the user.
export class Problem extends Error {}

let ort = null;

export async function start() {
  if (typeof WebAssembly !== "object") {
    throw new Problem(
      "This browser has no WebAssembly, which the networks need: pictures are shown but not classified.",
    );
  }
  try {
    ort = await import(`${RUNTIME}ort.wasm.min.mjs`);
  } catch {
    throw new Problem("onnxruntime-web is missing: python docs/examples/lens/build.py copies it.");
  }
  ort.env.wasm.wasmPaths = RUNTIME;
  ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
  ort.env.logLevel = "error";
}

export async function describe() {
  try {
    const answer = await fetch(`${MODELS}models.json`);
    const { networks } = answer.ok ? await answer.json() : {};
    if (networks?.length) return networks;
  } catch {
    // The sentence below says it.
  }
  throw new Problem("There are no networks here: the documentation says how to export them.");
}

// The address has the checksum in it, so that a new file is never taken for an old one.
function address(network) {
  const file = network.files[network.served];
  return `${MODELS}${file.file}?${file.sha256}`;
}

export async function load(network) {
  let bytes = await bytesOf(network, "default");
  if (bytes && !(await isWhole(network, bytes))) {
    // Perhaps only the copy on this device is damaged.
    bytes = await bytesOf(network, "reload");
    if (bytes && !(await isWhole(network, bytes))) {
      throw new Problem(
        `The network for ${network.name} is damaged, its checksum is another one: it is not used.`,
      );
    }
  }
  if (!bytes) throw new Problem(`The network for ${network.name} cannot be loaded.`);
  let session = null;
  try {
    session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  } catch {
    throw new Problem(`This browser cannot run the network for ${network.name}.`);
  }
  return { ...network, session };
}

async function bytesOf(network, cache) {
  try {
    const answer = await fetch(address(network), { cache });
    return answer.ok ? await answer.arrayBuffer() : null;
  } catch {
    return null;
  }
}

async function isWhole(network, bytes) {
  const file = network.files[network.served];
  if (bytes.byteLength !== file.bytes) return false;
  // Pages without HTTPS have no `crypto.subtle`: there only the length is compared.
  if (!globalThis.crypto?.subtle) return true;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return found === file.sha256;
}

// Classes and their probabilities, the most probable first.
export async function classify(network, head, bytes, side) {
  const shape = [1, side, side, network.channels];
  const images = new ort.Tensor("uint8", bytes, shape);
  const found = await network.session.run({ images }, [head]);
  const logits = Array.from(found[head].data);
  const largest = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp(logit - largest));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return network.classes
    .map((name, i) => ({ name, share: weights[i] / total, logit: logits[i] }))
    .sort((one, other) => other.share - one.share);
}
