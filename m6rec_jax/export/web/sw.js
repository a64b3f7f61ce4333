// Keeps an export for use without a network. The export puts two constants above: VERSION, of all
// its files, and FILES, without the builds of LiteRT.js, of which a browser needs one.
"use strict";

const PREFIX = `m6rec ${self.registration.scope} `;
const CACHE = PREFIX + VERSION;
const inScope = (name) => new URL(name, self.registration.scope).href;
const OWN = new Set(FILES.map(inScope));

// Pages that are isolated from other origins may have threads.
function isolated(response) {
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  const { status, statusText } = response;
  return new Response(response.body, { status, statusText, headers });
}

async function install() {
  const cache = await caches.open(CACHE);
  const fetched = (name) => new Request(name, { cache: "no-cache" });
  await cache.addAll(FILES.map(fetched));
  // The build that this browser needed of the version before.
  for (const name of await caches.keys()) {
    if (!name.startsWith(PREFIX) || name === CACHE) continue;
    for (const { url } of await (await caches.open(name)).keys()) {
      if (url.includes("/runtime/litert") && !url.includes("?")) {
        await cache.add(fetched(url)).catch(() => {});
      }
    }
  }
}

// A newer version waits until the page is closed: files of two versions do not go together.
self.addEventListener("install", (event) => event.waitUntil(install()));

self.addEventListener("activate", (event) => {
  const clean = async () => {
    for (const name of await caches.keys()) {
      if (name.startsWith(PREFIX) && name !== CACHE) await caches.delete(name);
    }
    await self.clients.claim();
  };
  event.waitUntil(clean());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  // Whatever else lies below the same address is not the page's.
  const url = request.url.split(/[?#]/)[0];
  const isOwn = OWN.has(url) || url.startsWith(inScope("runtime/"));
  if (request.method !== "GET" || !isOwn) return;
  const answer = async () => {
    const cache = await caches.open(CACHE);
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept) return isolated(kept);
    // Not what the browser itself keeps: that may be of another version, or damaged.
    const response = await fetch(request.url, { cache: "reload" });
    // Perhaps there is no room.
    if (response.ok) await cache.put(request, response.clone()).catch(() => {});
    return isolated(response);
  };
  event.respondWith(answer());
});
