// Keeps page and networks, so that the page works without a network after one visit.

const RUNTIME = "vendor/onnxruntime-web-1.22.0/";
const CACHE = `ncg-lens-1 ${RUNTIME}`; // another version of the runtime takes its place
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

const SCOPE = self.registration.scope;

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
  // Only what belongs to the page: on a developer's machine another one may have its place.
  const [address] = event.request.url.split(/[?#]/);
  const path = address.startsWith(SCOPE) ? address.slice(SCOPE.length) || "./" : null;
  // These have a version or a checksum in their address: they never change.
  const fixed = /^models\/.*\.onnx$/.test(path) || path?.startsWith(RUNTIME);
  if (event.request.method !== "GET" || !(fixed || PAGE.includes(path))) return;
  event.respondWith(fixed ? cacheFirst(event.request) : networkFirst(event.request));
});

async function fill() {
  const cache = await caches.open(CACHE);
  await cache.addAll(PAGE.map((name) => new Request(name, { cache: "no-cache" })));
  const { networks } = await (await cache.match("models/models.json")).json();
  const files = networks.map((network) => network.files[network.served]);
  for (const { file, sha256 } of files) {
    const answer = await fetch(`models/${file}?${sha256}`);
    if (answer.ok) await cache.put(answer.url, answer); // the page does without one that is missing
  }
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
    // "no-cache": the server is asked whether the copy of the browser is still the newest.
    return await keep(cache, request, await fetch(request, { cache: "no-cache" }));
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}

async function keep(cache, request, answer) {
  if (!answer.ok) return answer;
  try {
    // The same file with another checksum goes.
    await cache.delete(request, { ignoreSearch: true });
    await cache.put(request, answer.clone());
  } catch (error) {
    console.warn("Not kept, perhaps for lack of space:", error.message);
  }
  return answer;
}
