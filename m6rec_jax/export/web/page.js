// The page of an export: it renders requests, and a worker answers them. Whatever is shown is set as
// text.

import { $, make, runOnce } from "./elements.js";
import { renderHistory, Template } from "./layout.js";

const SHOWN = 20, RETRIEVED = 100;
const BUTTONS = { explanations: "Why?", contents: "Describe", titles: "Title", queries: "Searches" };

// ---------------------------------------------------------------- the model, in its worker

const worker = new Worker("worker.js");
const waiting = new Map();
let asks = 0;

worker.onmessage = ({ data }) => {
  if (data.loaded) $("about").textContent = `Loading: ${(data.loaded / 1e6).toFixed(1)} MB`;
  const own = waiting.get(data.id);
  if (!own) return;
  if (data.text !== undefined) own.grow(data.text);
  else {
    waiting.delete(data.id);
    if (data.error) own.reject(new Error(data.error));
    else own.resolve(data);
  }
};
worker.onerror = () => show(new Error("worker.js cannot be loaded"));

/** What a method of the worker returns, as {result, milliseconds}; `grow` is given partial texts. */
function ask(method, asked, grow = () => {}, id = ++asks) {
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject, grow });
    worker.postMessage({ id, method, asked });
  });
}

function show(error) {
  $("problem").textContent = error ? error.message : "";
  $("again").hidden = !error?.message.includes("damaged");
}

const busy = (button, run) => runOnce(button, run, show);

// ---------------------------------------------------------------- requests as text

let catalogue, tasks, scorers;
const seen = [], chosen = []; // places in the catalogue, or own titles, with reactions

const column = (task, name) => catalogue.columns[tasks[task][name]];

function values() {
  const own = {};
  for (const input of $("profile").querySelectorAll("input")) own[input.name] = input.value.trim();
  return own;
}

const history = (task) =>
  renderHistory(tasks[task], column(task, "events"), seen, values(), new Date());

// ---------------------------------------------------------------- what is picked

function picker(root, picked, { reactions }) {
  const parts = [".picked", ".none", ".search", ".found", ".count"];
  const [list, none, search, found, count] = parts.map((name) => root.querySelector(name));

  function add(pick) {
    picked.push({ ...pick, reaction: catalogue.reactions[0] });
    search.value = "";
    look();
    draw();
    search.focus();
  }

  function draw() {
    none.hidden = picked.length > 0;
    list.replaceChildren(
      ...picked.map((pick, place) => {
        const title = pick.title ?? catalogue.titles[pick.item];
        const children = [make("span", { className: "title", text: title })];
        if (reactions && catalogue.reactions.length > 1) {
          const select = make("select", { "aria-label": `What you think of ${title}` });
          catalogue.reactions.forEach((reaction, number) => {
            const selected = reaction === pick.reaction;
            select.append(make("option", { text: reaction.text, value: number, selected }));
          });
          select.onchange = () => (pick.reaction = catalogue.reactions[select.value]);
          children.push(select);
        }
        const remove = make("button", { className: "remove", text: "\u00d7", type: "button" });
        remove.setAttribute("aria-label", `Remove ${title}`);
        remove.onclick = () => {
          picked.splice(place, 1);
          draw();
          (list.querySelectorAll("button")[Math.min(place, picked.length - 1)] ?? search).focus();
        };
        return make("li", { children: [...children, remove] });
      }),
    );
  }

  function look() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const places = [];
    for (let item = 0; words.length && item < catalogue.titles.length && places.length < 8; item++) {
      const title = catalogue.titles[item].toLowerCase();
      if (words.every((word) => title.includes(word)) && !picked.some((own) => own.item === item)) {
        places.push(item);
      }
    }
    const buttons = places.map((item) => {
      const button = make("button", { text: catalogue.titles[item], type: "button" });
      button.onclick = () => add({ item });
      return button;
    });
    // What the catalogue has not is told by its title alone.
    const own = search.value.trim();
    if (own && reactions && catalogue.own_titles) {
      const button = make("button", { text: `Something else: “${own}”`, type: "button" });
      button.onclick = () => add({ title: own });
      buttons.push(button);
    }
    count.textContent = own ? `${buttons.length} found` : "";
    found.replaceChildren(...buttons.map((button) => make("li", { children: [button] })));
  }

  search.oninput = look;
  search.onkeydown = (event) => {
    if (event.key !== "Enter" || event.isComposing) return; // of an input method: not yet typed
    event.preventDefault();
    found.querySelector("button")?.click();
  };
  draw();
}

// ---------------------------------------------------------------- answers

async function recommend() {
  const all = document.querySelector("input[name=which]:checked").value === "all";
  const known = seen.map(({ item }) => item).filter((item) => item !== undefined);
  const times = [];
  let found;
  if (all) {
    const k = scorers.length ? RETRIEVED : SHOWN;
    const { segments } = history(catalogue.task);
    const asked = { history: segments, k, without: catalogue.repeats ? [] : known };
    const { result, milliseconds } = await ask("recommend", asked);
    times.push(`retrieved ${result.length} in ${milliseconds.toFixed(0)} ms`);
    found = result;
    if (!found.length) throw new Error("Nothing is left to recommend: you know all of it.");
    if (!scorers.length) read(segments);
  } else {
    if (!chosen.length) throw new Error("Choose what is to be ranked first.");
    found = chosen.map(({ item }) => ({ item, score: 0 }));
  }
  if (scorers.length) {
    const task = $("ranker").value;
    const { segments, person } = history(task);
    const texts = column(task, "candidates");
    const rendered = found.map(({ item }) => new Template(texts[item]).render(person));
    found = found.filter((_, place) => rendered[place] !== null);
    if (!found.length) throw new Error("Say more of yourself first: the model's texts need it.");
    const candidates = rendered.filter((text) => text !== null);
    const repeats = found.map(({ item }) => known.includes(item));
    const asked = { history: segments, candidates, task, repeats };
    const { result, milliseconds } = await ask("score", asked);
    times.push(`ranked ${result.length} in ${milliseconds.toFixed(0)} ms`);
    found = found.map(({ item }, place) => ({ item, score: result[place], text: candidates[place] }));
    found.sort((a, b) => b.score - a.score);
    read(segments, found);
  }
  draw(found.slice(0, SHOWN));
  $("meaning").textContent = scorers.length
    ? "How likely you are to like each, as the model has it:"
    : "How near each is to what you know:";
  $("time").textContent = `On this device: ${times.join(", ")}.`;
  $("results-title").focus();
}

function read(segments, found = []) {
  const lines = [...segments.filter(Boolean), ...found.slice(0, 3).map(({ text }) => text)];
  $("read").hidden = false;
  $("read").querySelector("ol").replaceChildren(...lines.map((text) => make("li", { text })));
}

function draw(found) {
  $("no-results").hidden = true;
  const writers = Object.keys(tasks).filter((name) => tasks[name].kind === "generation");
  $("results").replaceChildren(
    ...found.map(({ item, score }) => {
      const title = catalogue.titles[item];
      const shown = scorers.length ? `${(100 * score).toFixed(0)}%` : score.toFixed(2);
      const bar = make("div", { className: "bar" });
      bar.style.width = `${Math.max(0, Math.min(100, 100 * score))}%`;
      const text = make("p", { className: "text", "aria-live": "polite", "aria-busy": "false" });
      const head = make("div", {
        className: "head",
        children: [
          make("span", { className: "title", text: title }),
          make("span", { className: "score", text: shown }),
          ...writers.map((task) => writer(task, item, title, text)),
        ],
      });
      const track = make("div", { className: "track", children: [bar], "aria-hidden": "true" });
      return make("li", { children: [head, track, text] });
    }),
  );
}

function writer(task, item, title, text) {
  const name = BUTTONS[tasks[task].writing];
  const button = make("button", { text: name, type: "button" });
  button.setAttribute("aria-label", `${name} ${title}`);
  let running = 0;
  button.onclick = async () => {
    if (running) {
      worker.postMessage({ id: running, method: "cancel" });
      return;
    }
    running = ++asks;
    button.textContent = "Stop";
    button.setAttribute("aria-label", `Stop ${title}`);
    text.setAttribute("aria-busy", "true");
    show(null);
    const about = column(task, "about")[item];
    const segments = [...history(task).segments, ...(about ? [about] : [])];
    const asked = { history: segments, prefix: column(task, "prefix")[item], task };
    try {
      const { result } = await ask("write", asked, (part) => (text.textContent = part), running);
      text.textContent = result;
    } catch (error) {
      show(error);
    } finally {
      running = 0;
      button.textContent = name;
      button.setAttribute("aria-label", `${name} ${title}`);
      text.setAttribute("aria-busy", "false");
    }
  };
  return button;
}

// ---------------------------------------------------------------- start

/** Whether the page goes on: it is loaded anew once, so that it may have threads. */
async function isKept() {
  if (!navigator.serviceWorker) return true;
  const registering = navigator.serviceWorker.register("sw.js");
  if (crossOriginIsolated && navigator.serviceWorker.controller) {
    registering.catch(() => {}); // perhaps there is no network
    return true;
  }
  const registration = await registering;
  // A newer version waits until every page of the older one is closed, perhaps this one, too.
  const own = registration.active ?? registration.waiting ?? registration.installing;
  await new Promise((done) => {
    const look = () => ["activated", "redundant"].includes(own.state) && done();
    own.addEventListener("statechange", look);
    look();
  });
  if (crossOriginIsolated || own.state === "redundant" || sessionStorage.getItem("m6rec")) {
    return true;
  }
  sessionStorage.setItem("m6rec", "loaded anew");
  location.reload();
  return false;
}

async function start() {
  if (!isSecureContext) {
    throw new Error("Open this page over https or on localhost: browsers keep nothing for others.");
  }
  if (!(await isKept().catch(() => true))) return;
  const threads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  const { result } = await ask("open", { threads });
  ({ catalogue } = result);
  tasks = catalogue.tasks;
  const size = catalogue.titles.length.toLocaleString("en");
  const count = result.threads === 1 ? "one thread" : `${result.threads} threads`;
  const kept = navigator.serviceWorker?.controller ? "Works offline" : "Not kept for use offline";
  $("about").textContent = `${catalogue.name}: ${size} items. ${kept}, ${count}.`;
  scorers = Object.keys(tasks).filter((name) => tasks[name].kind === "scoring");
  scorers.forEach((name) => $("ranker").append(make("option", { text: name, value: name })));
  $("ranker-field").hidden = scorers.length < 2;
  $("which").hidden = !scorers.length;
  for (const { name, required } of catalogue.profile) {
    const id = `profile-${name}`;
    const label = make("label", { text: name.replaceAll("_", " "), htmlFor: id });
    const input = make("input", { id, name, maxLength: 80, autocomplete: "off" });
    if (required) input.placeholder = "unknown";
    $("profile").append(make("div", { children: [label, input] }));
  }
  picker($("seen"), seen, { reactions: true });
  picker($("chosen"), chosen, { reactions: false });
  for (const input of document.querySelectorAll("input[name=which]")) {
    input.onchange = () => ($("chosen").hidden = input.value === "all");
  }
  $("ask").onsubmit = (event) => {
    event.preventDefault();
    busy($("go"), recommend);
  };
  $("main").hidden = false;
}

$("again").onclick = async () => {
  const registration = await navigator.serviceWorker?.getRegistration();
  await registration?.unregister();
  for (const name of await caches.keys()) {
    if (name.startsWith(`m6rec ${registration?.scope}`)) await caches.delete(name);
  }
  sessionStorage.clear();
  location.reload();
};

start().catch((error) => {
  $("about").textContent = "Not loaded";
  show(error);
});
