// The model of an export: what `EdgeModel` of `m6rec export --format litert` is in Python.
//
//   const model = await openModel(read, { threads: 2 });
//   await model.score(["24 years old", "liked Fargo (1996)"], ["Heat (1995)", "Alien (1979)"]);
//   await model.recommend(["24 years old", "liked Fargo (1996)"], { k: 5 });
//
// It runs in a worker of the page, and in Node.js, where the export is checked.

import { sourceRow, textRow } from "./layout.js";
import { Tokenizer } from "./tokenizer.js";

const FORMAT = "m6rec-web-1";
const EOS = 1;

/**
 * A function from the name of a file to its bytes, which are compared with the manifest.
 *
 * @param {Function} fetchBytes from a name to bytes
 */
export function checked(fetchBytes) {
  let manifest;

  async function read(name) {
    const bytes = await fetchBytes(name);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hex = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex === manifest.files[name]) return bytes;
    throw new Error(`${name} is damaged: it is not the file that was exported`);
  }

  async function unpacked(name) {
    const packed = new Blob([await read(`${name}.gzip`)]).stream();
    const stream = packed.pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  return async (name) => {
    if (name !== "export.json") return await (manifest.files[name] ? read : unpacked)(name);
    try {
      manifest = JSON.parse(new TextDecoder().decode(await fetchBytes(name)));
    } catch (error) {
      throw error instanceof SyntaxError ? new Error("export.json is damaged") : error;
    }
    if (manifest.format === FORMAT) return manifest;
    throw new Error(`export.json is of format ${manifest.format}; this reads ${FORMAT}`);
  };
}

/**
 * @param {Function} read of `checked`
 * @param {Object} options `threads` more than one need a page that is isolated from other origins;
 *   `runtime` is the address of LiteRT.js
 */
export async function openModel(read, { threads = 1, runtime }) {
  const manifest = await read("export.json");
  const [programs, vocabulary, catalogue, vectors] = await Promise.all(
    ["model.tflite", "vocabulary.model", "catalogue.json", "vectors.bin"].map(read),
  );
  const litert = await import(`${runtime}index.js`);
  const relaxed = await litert.supportsFeature("relaxedSimd");
  const threaded = threads > 1 && relaxed;
  const build = `litert_wasm_${threaded ? "threaded_" : relaxed ? "" : "compat_"}internal`;
  // Where its loader looks for what it need not fetch.
  self.Module = {
    wasmBinary: await read(`runtime/${build}.wasm`),
    mainScriptUrlOrBlob: `${runtime}${build}.js`,
    printErr: () => {},
  };
  const loaded = await litert.loadLiteRt(runtime, { threads: threaded });
  const compiled = await loaded.loadAndCompile(programs, {
    accelerator: "wasm",
    cpuOptions: { numThreads: threaded ? threads : 1 },
  });
  const items = JSON.parse(new TextDecoder().decode(catalogue));
  const model = new Model(litert, compiled, manifest, new Tokenizer(vocabulary), items, vectors);
  model.threads = threaded ? threads : 1;
  return model;
}

class Model {
  constructor(litert, compiled, manifest, tokenizer, catalogue, vectors) {
    Object.assign(this, { litert, compiled, manifest, tokenizer, catalogue });
    const items = catalogue.titles.length;
    this.scales = new Float32Array(vectors.slice(0, 4 * items).buffer);
    this.vectors = new Int8Array(vectors.buffer, vectors.byteOffset + 4 * items);
    this.encoded = { key: null, tensors: {} };
  }

  /** The probability of each candidate; -1 for texts without words. `repeats`: had before or not. */
  async score(history, candidates, task, repeats = []) {
    const own = this.task(task, "scoring");
    const encoded = await this.encode(history, own);
    const { candidates: number, candidate_lengths: lengths } = this.manifest;
    const rows = candidates.map((text) => this.textRow(text, own.text_length));
    // Short ones together: less of their program's room is padding.
    const order = [...rows.keys()].filter((place) => rows[place]);
    order.sort((a, b) => rows[a].tokens.length - rows[b].tokens.length);
    const found = new Float32Array(rows.length).fill(-1);
    for (let start = 0; start < order.length; start += number) {
      const part = order.slice(start, start + number);
      const length = lengths.find((most) => most >= rows[part.at(-1)].tokens.length);
      const tokens = new Int32Array(number * length), blocks = new Int32Array(number * length);
      const had = part.map((place) => (repeats[place] ? 1 : 0));
      part.forEach((place, row) => {
        tokens.set(rows[place].tokens, row * length);
        blocks.set(rows[place].blocks, row * length);
      });
      const inputs = { tokens, blocks, repeats: had, task: [own.task_id], positive: own.positive };
      inputs.sampling_rates = own.sampling_rates;
      const { scores } = await this.run(`score_${length}`, inputs, encoded);
      const values = taken(scores);
      part.forEach((place, row) => (found[place] = values[row]));
    }
    return found;
  }

  /** A unit vector. */
  async user(history, task) {
    const own = this.task(task, "retrieval");
    const { vectors } = await this.run("user", this.source(history, own));
    return taken(vectors);
  }

  /** Places in the catalogue and cosines of the nearest items, best first, without some places. */
  async recommend(history, { k = 10, without = [], task } = {}) {
    const own = this.catalogue.task;
    if ((task ?? own) !== own) throw new Error(`the catalogue is of ${own}, not of ${task}`);
    const user = await this.user(history, own);
    const left = new Set(without);
    const found = [];
    this.scales.forEach((scale, item) => {
      if (left.has(item)) return;
      let sum = 0;
      const start = item * user.length;
      for (let i = 0; i < user.length; i++) sum += user[i] * this.vectors[start + i];
      found.push({ item, score: sum * scale });
    });
    return found.sort((a, b) => b.score - a.score || a.item - b.item).slice(0, k);
  }

  /** The text whose every token is the likeliest one, prefix included, as it grows. */
  async *write(history, prefix, task) {
    const own = this.task(task, "generation");
    const encoded = await this.encode(history, own);
    const id = { task: [own.task_id] };
    const given = this.tokenizer.encode(prefix);
    let cache = await this.run("start", id, encoded);
    let token = this.manifest.special_ids[2];
    const written = [];
    try {
      for (let position = 0; position < this.manifest.max_tokens; position++) {
        const inputs = { ...id, token: [token], position: [position] };
        const { token: next, ...states } = await this.run("step", inputs, {
          ...cache,
          mask: encoded.mask,
        });
        for (const name in states) cache[name]?.delete();
        cache = { ...cache, ...states };
        const [likeliest] = taken(next);
        token = position < given.length ? given[position] : likeliest;
        if (token === EOS) return;
        written.push(token);
        if (written.length >= given.length) yield this.tokenizer.decode(written);
      }
    } finally {
      Object.values(cache).forEach((tensor) => tensor.delete());
    }
  }

  // What the encoder makes of the last history is kept.
  async encode(history, own) {
    const key = JSON.stringify([history, own.task_id]);
    if (this.encoded.key !== key) {
      const tensors = await this.run("encode", this.source(history, own));
      Object.values(this.encoded.tensors).forEach((tensor) => tensor.delete());
      this.encoded = { key, tensors };
    }
    return this.encoded.tensors;
  }

  source(history, own) {
    const pieces = history.map((text) => this.tokenizer.encode(text));
    const row = sourceRow(pieces, this.manifest.special_ids, own.source_length);
    return { ...row, task: [own.task_id] };
  }

  textRow(text, limit) {
    const pieces = this.tokenizer.encode(text);
    return pieces.length ? textRow(pieces, this.manifest.special_ids, limit) : null;
  }

  task(name, kind) {
    const own = this.manifest.tasks[name];
    if (own?.kind === kind) return own;
    throw new Error(`there is no task ${name} for ${kind}`);
  }

  // Numbers become tensors, with zeros at the end; what a program does not read, it does not take.
  // An empty cache is zeros.
  async run(name, numbers, tensors = {}) {
    const program = this.compiled.signatures[name];
    const given = {}, made = [];
    for (const input of program.getInputDetails()) {
      if (tensors[input.name]) given[input.name] = tensors[input.name];
      else {
        const size = input.shape.reduce((product, length) => product * length, 1);
        const values = new (input.dtype === "int32" ? Int32Array : Float32Array)(size);
        values.set(numbers[input.name] ?? []);
        given[input.name] = new this.litert.Tensor(values, input.shape);
        made.push(given[input.name]);
      }
    }
    const found = await program.run(given);
    made.forEach((tensor) => tensor.delete());
    return found;
  }
}

// A copy of a tensor's numbers, which is then no longer needed.
function taken(tensor) {
  const values = tensor.toTypedArray().slice();
  tensor.delete();
  return values;
}
