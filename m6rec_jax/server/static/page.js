// The page of an m6rec server. It asks the public routes; whatever is shown is set as text.

import { $, make, runOnce } from "./elements.js";

const TOKEN = "m6rec-token";
const state = { models: [], dataSet: null, catalogue: null, candidates: null, history: null };

function say(text) {
  $("status").textContent = text;
}

function showProblem(error) {
  $("problem").textContent = error ? error.message : "";
  if (error && error.status === 401) askForToken();
}

const problem = (text, status = 0) => Object.assign(new Error(text), { status });

// ---------------------------------------------------------------- requests

/** A response, or a Problem in words for a person. */
async function request(path, body) {
  const headers = {};
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  const options = { headers };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw problem("The server cannot be reached. Does it still run?");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response) {
  if (response.status === 401) {
    const given = sessionStorage.getItem(TOKEN) !== null;
    return problem(given ? "This is not the server's token." : "The server wants a token.", 401);
  }
  let told = `the server answered with status ${response.status}`;
  try {
    told = (await response.json()).error.message;
  } catch {
    // No JSON: something between the page and the server answered.
  }
  return problem(`That did not work: ${told}`, response.status);
}

async function ask(path, body) {
  return (await request(path, body)).json();
}

const busy = (button, run) => runOnce(button, run, showProblem);

// ---------------------------------------------------------------- items

/** A list of items that a person puts together: from the catalogue, or own ones. */
function picker(root, { legend, none, withValue }) {
  const { catalogue } = state;
  const node = $("picker").content.cloneNode(true);
  const find = (selector) => node.querySelector(selector);
  const [list, empty, search, found] = [".picked", ".none", ".search", ".found"].map(find);
  const own = find(".own");
  const picked = [];
  find("legend").textContent = legend;
  empty.textContent = none;
  search.id = `${root.id}-search`;
  find(".search-label").htmlFor = search.id;

  function draw() {
    empty.hidden = picked.length > 0;
    list.replaceChildren(...picked.map(drawOne));
  }

  function drawOne(one) {
    const children = [make("span", { className: "title", text: one.title })];
    if (withValue && catalogue.value !== null) {
      const value = make("input", { type: "number", step: "any", required: true });
      value.setAttribute("aria-label", `${catalogue.value} of ${one.title}`);
      value.value = one.value;
      value.addEventListener("input", () => { one.value = value.value; });
      children.push(value);
    }
    const remove = make("button", { type: "button", text: "×" });
    remove.setAttribute("aria-label", `Remove ${one.title}`);
    remove.addEventListener("click", () => {
      picked.splice(picked.indexOf(one), 1);
      draw();
      say(`${one.title} is removed.`);
      search.focus();
    });
    children.push(remove);
    return make("li", { children });
  }

  function add(item, title) {
    const liked = catalogue.liked_at_least;
    picked.push({ item, title, value: liked === null ? 1 : liked });
    draw();
    say(`${title} is added.`);
  }

  let number = 0;
  async function look() {
    const mine = ++number;
    const query = search.value.trim();
    if (!query) return found.replaceChildren();
    try {
      const answer = await ask(`v1/items?limit=20${ofTask()}&query=${encodeURIComponent(query)}`);
      if (mine !== number) return; // another was asked since
      found.replaceChildren(...answer.items.map(({ id, title }) => {
        const button = make("button", { type: "button", text: `Add ${title}` });
        button.addEventListener("click", () => {
          add(id, title);
          search.value = "";
          found.replaceChildren();
          search.focus();
        });
        return make("li", { children: [button] });
      }));
      if (!answer.items.length) found.append(make("li", { className: "muted", text: "Nothing found." }));
      say(`${answer.items.length} items found.`);
    } catch (error) {
      showProblem(error);
    }
  }
  let timer;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, 150);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { // it must not rank
      event.preventDefault();
      look();
    }
  });

  const read = columnFields(own, catalogue.item_columns, root.id);
  const addOwn = find(".add-own");
  addOwn.addEventListener("click", () => {
    const item = read();
    const values = Object.values(item);
    if (!values.length) return showProblem(problem("Write something about the item first."));
    showProblem(null);
    add(item, String(item.title || values.join(", ")));
    own.querySelectorAll("input, select").forEach((input) => { input.value = ""; });
  });
  draw();
  root.replaceChildren(node);
  return picked;
}

/** Adds an input for each column; returns what reads those that are filled in. */
function columnFields(root, columns, prefix) {
  const inputs = Object.entries(columns).map(([name, kind]) => {
    const id = `${prefix}-${name}`;
    const isNumber = kind === "int" || kind === "float";
    let input;
    if (kind === "bool") {
      const options = [["", ""], ["true", "yes"], ["false", "no"]];
      input = make("select", { id, children: options.map(([value, text]) => make("option", { value, text })) });
    } else {
      input = make("input", { id, type: isNumber ? "number" : "text", autocomplete: "off" });
      if (isNumber) input.step = kind === "int" ? "1" : "any";
    }
    const words = name === "id" ? "User's id" : human(name);
    const text = kind === "list<string>" ? `${words}, separated by commas` : words;
    const label = make("label", { htmlFor: id, text });
    root.append(make("div", { children: [label, input] }));
    return [name, input, kind];
  });
  return () => Object.fromEntries(
    inputs
      .filter(([, input]) => input.value.trim())
      .map(([name, input, kind]) => [name, valueOf(input.value.trim(), kind)]),
  );
}

/** A column's name as a label. */
function human(name) {
  const words = name.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function valueOf(text, kind) {
  if (kind === "int" || kind === "float") return Number(text);
  if (kind === "bool") return text === "true";
  if (kind === "list<string>") return text.split(",").map((part) => part.trim()).filter(Boolean);
  return text;
}

// ---------------------------------------------------------------- start

function askForToken() {
  sessionStorage.removeItem(TOKEN);
  $("token-form").hidden = false;
  $("token").focus();
}

const can = (job) => state.models.filter((model) => model.jobs.includes(job));

/** What is to be done: a route and a task; neither where the model ranks nothing. */
const chosen = () => JSON.parse($("how").value || "{}");

function ofTask() {
  const { task } = chosen();
  return task ? `&task=${encodeURIComponent(task)}` : "";
}

async function start() {
  try {
    state.models = (await ask("v1/models")).data;
    fillHow();
    state.dataSet = null; // a server that wants another token may have other data
    await useCatalogue();
  } catch (error) {
    if (error.status === 503) {
      $("about").textContent = "The model is loading.";
      setTimeout(start, 2000);
    } else {
      $("about").textContent = "";
      showProblem(error);
    }
    return;
  }
  showProblem(null);
  $("token-form").hidden = true;
  const [chats] = can("dialogue");
  $("chat-card").hidden = !chats;
  $("greeting").textContent = chats ? chats.greeting : "";
  $("main").hidden = false;
  say("The model is ready.");
}

/** Offers columns, items and writers of the data set of the task that is chosen. */
async function useCatalogue() {
  const { task } = chosen();
  const dataSet = task ? state.models.find(({ id }) => id === task).data_set : "";
  if (dataSet === state.dataSet) return;
  const catalogue = await ask(`v1/items?limit=1${ofTask()}`).catch((error) => {
    if (error.status !== 409) throw error;
    // A model of dialogues alone.
    return { num_items: 0, user_columns: {}, item_columns: {}, value: null, liked_at_least: null };
  });
  if (chosen().task !== task) return; // another was chosen since
  Object.assign(state, { dataSet, catalogue });
  const tasks = state.models.filter((model) => model.jobs.length && model.id !== "m6rec").length;
  $("about").textContent = `${tasks} tasks, ${catalogue.num_items} items`;
  $("profile").replaceChildren();
  state.user = columnFields($("profile"), { id: "string", ...catalogue.user_columns }, "user");
  state.history = picker($("history"), {
    legend: "History, oldest first", none: "Nothing yet.", withValue: true,
  });
  state.candidates = picker($("candidates"), {
    legend: "Candidates", none: "None yet.", withValue: false,
  });
  const writers = can("generation").filter((model) => model.data_set === dataSet);
  state.writer = writers.find(({ writing }) => writing === "explanations") || writers[0];
  // What was found before is of other data.
  $("results").replaceChildren();
  $("how-details").hidden = true;
  $("no-results").hidden = false;
  $("no-results").textContent =
    task ? "Put together a history and press Rank." : "This model neither ranks nor retrieves.";
}

function fillHow() {
  const choices = [
    ...can("retrieval").map(({ id }) => ["recommend", id, `Recommend from the catalogue (${id})`]),
    ...can("scoring").map(({ id }) => ["score", id, `Rank candidates (${id})`]),
    ...can("likelihood")
      .filter(({ kind }) => kind === "likelihood")
      .map(({ id }) => ["score", id, `Rank candidates by likelihood (${id})`]),
  ];
  $("how").replaceChildren(...choices.map(([route, task, text]) => {
    return make("option", { text, value: JSON.stringify({ route, task }) });
  }));
  $("rank").hidden = !choices.length;
  showAsked();
}

/** Shows the fields that what is to be done needs. */
function showAsked() {
  const ranks = chosen().route === "score";
  $("candidates").hidden = !ranks;
  $("k-field").hidden = ranks;
  $("k").disabled = ranks;
}

// ---------------------------------------------------------------- ranking

function body() {
  const now = Date.now() / 1000;
  const { history } = state;
  const user = state.user();
  return {
    ...(Object.keys(user).length ? { user } : {}),
    time: now,
    history: history.map(({ item, value }, index) => ({
      item,
      time: now - 3600 * (history.length - index),
      ...(state.catalogue.value === null ? {} : { value: Number(value) }),
    })),
  };
}

async function rank() {
  const { route, task } = chosen();
  const { dataSet } = state;
  await useCatalogue(); // where that failed when the task was chosen
  if (dataSet !== state.dataSet || chosen().task !== task) return; // what to rank is to be put together
  const asked = body();
  const given = { task, ...asked, debug: true };
  let described = null;
  if (route === "score") {
    if (!state.candidates.length) throw problem("Add candidates to be ranked first.");
    described = state.candidates.map(({ item }) => item);
    given.candidates = described;
  } else {
    given.k = Number($("k").value);
  }
  const answer = await ask(`v1/${route}`, given);
  if (dataSet !== state.dataSet) return; // a task of another was chosen since
  const items = answer.items.map((item, index) => ({
    ...item,
    title: item.title || (described ? state.candidates[index].title : item.id),
    about: described ? described[index] : item.id,
  }));
  if (described) items.sort((a, b) => b.score - a.score);
  showItems(items, asked, Boolean(described || answer.scored_by));
  showDetails(answer);
  say(`${items.length} items are ranked.`);
  $("results-title").scrollIntoView();
  $("results-title").focus({ preventScroll: true });
}

/** Shows what a request was answered with. */
function showItems(items, asked, isScored) {
  $("no-results").hidden = items.length > 0;
  $("no-results").textContent = "Nothing was found.";
  // Probabilities are shown; other scores say nothing but the order.
  const areShares = isScored && items.every(({ score }) => score >= 0 && score <= 1);
  $("results").replaceChildren(...items.map((item, index) => {
    const head = make("div", {
      className: "head",
      children: [
        make("span", { className: "rank", text: `${index + 1}` }),
        make("span", { className: "title", text: item.title }),
      ],
    });
    const parts = [head];
    if (item.details) parts.push(make("p", { className: "muted", text: item.details }));
    if (item.because.length) {
      const others = item.because.join(" and ");
      parts.push(make("p", { className: "muted", text: `People who had ${others} had this, too.` }));
    }
    if (areShares) {
      const bar = make("div", { className: "bar" });
      bar.style.width = `${Math.max(1, 100 * item.score)}%`;
      head.append(make("span", { className: "score", text: percent(item.score) }));
      parts.push(make("div", { className: "track", children: [bar], "aria-hidden": "true" }));
    }
    const text = make("p", { className: "text", "aria-live": "polite" });
    if (state.writer) head.append(writeButton(item, asked, text));
    return make("li", { children: [...parts, text] });
  }));
}

const percent = (share) => (share > 0 && share < 0.01 ? "under 1%" : `${Math.round(100 * share)}%`);

function writeButton(item, asked, text) {
  const { id, writing } = state.writer;
  const name = writing === "explanations" ? "Why?" : "Write";
  const button = make("button", { type: "button", text: name, "aria-label": `${name} ${item.title}` });
  button.addEventListener("click", () => busy(button, async () => {
    const answer = await ask("v1/completions", { model: id, prompt: asked, item: item.about });
    text.textContent = answer.choices[0].text || "(nothing was written)";
  }));
  return button;
}

export function showDetails({ debug, task, job, prompts, data, snapshot, scored_by: scoredBy }) {
  $("read").replaceChildren(...debug.read.flatMap((read) => {
    const lines = (texts) => make("ol", { children: texts.map((text) => make("li", { text })) });
    const parts = [make("p", { text: `${read.task}: history` }), lines(read.history)];
    if (read.candidates.length) {
      parts.push(make("p", { text: `${read.task}: candidates` }), lines(read.candidates));
    }
    return parts;
  }));
  const by = scoredBy ? `, scored by ${scoredBy.task}` : "";
  $("answered-by").textContent =
    `${task} (${job})${by}, prompts ${prompts.slice(0, 12)}, data ${data.slice(0, 12)}, snapshot ${snapshot}`;
  $("how-details").hidden = false;
}

// ---------------------------------------------------------------- chat

const turns = [];

function showTurn(role, content) {
  const text = make("div", { text: content });
  const who = make("div", { className: "who", text: role === "user" ? "You" : "m6rec" });
  const node = make("li", { className: role, children: [who, text] });
  $("turns").append(node);
  node.scrollIntoView({ block: "nearest" });
  return node;
}

async function chat() {
  const message = $("message").value.trim();
  if (!message) return;
  const asked = showTurn("user", message);
  const messages = [...turns, { role: "user", content: message }];
  const found = await ask("v1/chat/completions", { model: "m6rec", messages }).catch((error) => {
    asked.remove();
    throw error;
  });
  $("message").value = "";
  const { content } = found.choices[0].message;
  const answer = showTurn("assistant", content || "(nothing was written)");
  const titles = new Set(Object.values(found.m6rec.recommended).flat().map(({ title }) => title));
  if (titles.size) {
    const items = [...titles].map((title) => make("li", { text: title }));
    answer.append(make("div", { className: "who", text: "Recommended" }), make("ul", { children: items }));
  }
  answer.scrollIntoView({ block: "nearest" });
  turns.push({ role: "user", content: message }, { role: "assistant", content });
}

// ---------------------------------------------------------------- events

$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value.trim());
  $("token").value = "";
  start();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  busy($("rank"), rank);
});
$("how").addEventListener("change", () => {
  showAsked();
  useCatalogue().catch(showProblem);
});
$("say").addEventListener("submit", (event) => {
  event.preventDefault();
  busy(event.submitter || $("say").querySelector("button"), chat);
});
$("forget").addEventListener("click", () => {
  turns.length = 0;
  $("turns").replaceChildren();
  $("message").focus();
});
start();
