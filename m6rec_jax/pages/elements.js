// Elements of a page. Whatever is shown is set as text.

export const $ = (id) => document.getElementById(id);

/** An element with a class, a text and children. */
export function make(tag, { className = "", text = "", children = [], ...more } = {}) {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  node.append(...children);
  for (const [name, value] of Object.entries(more)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  return node;
}

/** Runs what a button starts, once at a time; `show` is given what goes wrong, and null before. */
export async function runOnce(button, run, show) {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true"); // it keeps the focus
  show(null);
  try {
    await run();
  } catch (error) {
    show(error);
  } finally {
    button.removeAttribute("aria-disabled");
  }
}
