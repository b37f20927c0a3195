// Keeps page and networks, so that the page works without a network after one visit.

const CACHE = "ncg-lens-1";
const RUNTIME = "vendor/onnxruntime-web-1.22.0/";
const PAGE = [
  "./",
  "index.html",
  "style.css",
  "lens.js",
  "board.js",
  "networks.js",
  "page.js",
  "pixels.js",
  `${RUNTIME}ort.wasm.min.mjs`,
  `${RUNTIME}ort-wasm-simd-threaded.mjs`,
  `${RUNTIME}ort-wasm-simd-threaded.wasm`,
  "models/models.json",
];

self.addEventListener("install", (event) => event.waitUntil(fill().then(() => self.skipWaiting())));

self.addEventListener("activate", (event) =>
  event.waitUntil(
    (async () => {
      const old = (await caches.keys()).filter((name) => name.startsWith("ncg-lens-") && name !== CACHE);
      await Promise.all(old.map((name) => caches.delete(name)));
      await self.clients.claim();
    })(),
  ),
);

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || url.origin !== self.location.origin) return;
  // These have a version or a checksum in their address: they never change.
  const fixed = url.pathname.includes(RUNTIME) || url.pathname.endsWith(".onnx");
  event.respondWith(fixed ? cacheFirst(event.request) : networkFirst(event.request));
});

async function fill() {
  const cache = await caches.open(CACHE);
  await cache.addAll(PAGE);
  const { networks } = await (await cache.match("models/models.json")).json();
  const files = networks.map((network) => network.files[network.served]);
  await cache.addAll(files.map((file) => `models/${file.file}?${file.sha256}`));
}

async function cacheFirst(request) {
  const cache = await caches.open(CACHE);
  // "reload": what is kept is damaged.
  const kept = request.cache === "reload" ? null : await cache.match(request);
  return kept ?? keep(cache, request, await fetch(request));
}

async function networkFirst(request) {
  const cache = await caches.open(CACHE);
  try {
    return await keep(cache, request, await fetch(request));
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}

async function keep(cache, request, answer) {
  if (!answer.ok) return answer;
  const path = new URL(request.url).pathname;
  for (const other of await cache.keys()) {
    // The same file with another checksum.
    if (new URL(other.url).pathname === path) await cache.delete(other);
  }
  await cache.put(request, answer.clone());
  return answer;
}
