// Compares an export with the answers of the model that it was made of: `node check.mjs`. Prints JSON.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { runInThisContext } from "node:vm";
import { checked, openModel } from "./model.js";

const at = (name) => fileURLToPath(new URL(name, import.meta.url));

// What LiteRT.js expects of a worker, and its WebAssembly of Node.js.
globalThis.self = globalThis;
globalThis.require = createRequire(import.meta.url);
globalThis.__dirname = at("runtime");
globalThis.importScripts = (url) => {
  runInThisContext(readFileSync(fileURLToPath(url), "utf8"), { filename: fileURLToPath(url) });
};
console.warn = () => {};

const read = checked((name) => new Uint8Array(readFileSync(at(name))));
const model = await openModel(read, { runtime: new URL("runtime/", import.meta.url).href });
const asked = JSON.parse(readFileSync(at("held_out.json"), "utf8"));
const results = {};
const named = ({ signature, task }) => `${signature} ${task}`;
for (const name of new Set(asked.map(named))) {
  const own = asked.filter((one) => named(one) === name), { signature } = own[0];
  const labels = [], ours = [], theirs = [];
  let apart = 0, largest = 1e-30, equal = 0;
  for (const { task, inputs, output } of own) {
    if (signature === "generate") {
      let text = "";
      for await (text of model.write(inputs.history, inputs.prefix, task));
      equal += text === output;
      continue;
    }
    let found;
    if (signature === "score") {
      found = await model.score(inputs.history, inputs.candidates, task, inputs.repeats);
      labels.push(...inputs.labels);
      ours.push(...found);
      theirs.push(...output);
    } else if (signature === "recommend") {
      const best = await model.recommend(inputs.history, { k: output.length, task });
      found = best.map(({ score }) => score);
    } else found = await model.user(inputs.history, task);
    output.forEach((value, place) => {
      const difference = Math.abs(value - found[place]);
      apart = Math.max(apart, difference); // NaN stays
      largest = Math.max(largest, Math.abs(value));
    });
  }
  results[name] = {
    rows: own.length,
    largest_difference: apart / largest,
    equal: signature === "generate" ? equal / own.length : 1,
  };
  if (labels.length === ours.length && new Set(labels).size === 2) {
    Object.assign(results[name], { auc: auc(labels, ours), model_auc: auc(labels, theirs) });
  }
}
// NaN as Python reads it.
console.log(JSON.stringify({ results, imported: [] }).replaceAll(":null", ":NaN"));
const { tolerance, equal_texts } = JSON.parse(readFileSync(at("export.json"), "utf8"));
const wrong = Object.keys(results).filter((name) => {
  const { largest_difference, equal } = results[name];
  return !(largest_difference <= tolerance) || equal < equal_texts;
});
if (wrong.length) console.error(`not as the model answers: ${wrong.join(", ")}`);
process.exit(wrong.length ? 1 : 0);

function auc(labels, scores) {
  const order = [...scores.keys()].sort((a, b) => scores[a] - scores[b]);
  let sum = 0, positive = 0;
  for (let start = 0; start < order.length; ) {
    let end = start + 1; // NaN is not equal to itself
    while (end < order.length && scores[order[end]] === scores[order[start]]) end++;
    const liked = order.slice(start, end).filter((place) => labels[place]).length;
    sum += (liked * (start + end + 1)) / 2;
    positive += liked;
    start = end;
  }
  return (sum - (positive * (positive + 1)) / 2) / (positive * (labels.length - positive));
}
