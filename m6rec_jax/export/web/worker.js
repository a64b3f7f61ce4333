// Runs the model beside the page, which stays quick. A classic worker: LiteRT.js loads its code with
// importScripts.
"use strict";

// Programs run on the CPU; LiteRT.js would start the GPU anyway.
Object.defineProperty(self.navigator, "gpu", { value: undefined });

let model;
const cancelled = new Set();

const METHODS = {
  async open({ threads }) {
    const { checked, openModel } = await import("./model.js");
    const scope = new URL("./", self.location.href).href;
    let loaded = 0;
    const read = checked(async (name) => {
      let response;
      try {
        response = await fetch(name, { cache: "no-cache" });
      } catch {
        throw new Error(`${name} cannot be fetched: is the network there?`);
      }
      if (!response.ok) throw new Error(`${name} cannot be fetched: status ${response.status}`);
      const bytes = new Uint8Array(await response.arrayBuffer());
      loaded += bytes.length;
      postMessage({ loaded });
      return bytes;
    });
    model = await openModel(read, { threads, runtime: `${scope}runtime/` });
    return { catalogue: model.catalogue, threads: model.threads };
  },

  score: (asked) => model.score(asked.history, asked.candidates, asked.task, asked.repeats),

  recommend: (asked) => model.recommend(asked.history, asked),

  async write({ history, prefix, task, id }) {
    let last = "";
    for await (last of model.write(history, prefix, task)) {
      // The last character is perhaps not whole yet.
      const text = last.replace(/\ufffd+$/u, "");
      postMessage({ id, text });
      // Lets messages in: the page may not want the rest.
      await new Promise((next) => setTimeout(next));
      if (cancelled.delete(id)) return text;
    }
    return last;
  },
};

// One at a time: programs share their memory.
let queue = Promise.resolve();

self.onmessage = ({ data: { id, method, asked } }) => {
  if (method === "cancel") {
    cancelled.add(id);
    return;
  }
  queue = queue.then(async () => {
    const begin = performance.now();
    try {
      const result = cancelled.delete(id) ? "" : await METHODS[method]({ ...asked, id });
      postMessage({ id, result, milliseconds: performance.now() - begin });
    } catch (error) {
      postMessage({ id, error: String(error?.message ?? error) });
    }
  });
};
