// The editor: after a short pause, the text is stored as a draft and linted. The file changes only on Save.
import { ask, get, tell } from "/static/app.js";
import { painted } from "/static/yaml.js";

const PAUSE = 350;
const area = get("text"), paper = get("paper"), found = get("found"), state = get("state");
const { base, name } = get("editor").dataset;
let version = "", kept = "", timer = 0, marks = {}, sending = Promise.resolve(), latest = null;
const watching = [];

function show(answer, replaceText) {
  version = answer.version;
  kept = answer.text.replace(/\r\n/g, "\n");
  if (replaceText) area.value = kept;
  marks = answer.lines;
  found.innerHTML = answer.html; // rendered and escaped by the server; the page's policy runs no script in it
  found.setAttribute("aria-busy", "false");
  get("save").disabled = !(answer.is_draft && answer.is_loadable);
  get("discard").disabled = !answer.is_draft;
  state.textContent = area.value !== kept ? "typing…" : answer.is_draft ? "draft stored, not saved" : "saved";
  latest = answer;
  for (const work of watching) work(answer);
  paint();
}

// Calls back with each state of the text; at once if there is one, because another script may be loaded after the first.
export function onEdited(work) {
  watching.push(work);
  if (latest) work(latest);
}

// The textarea's own text is transparent: what is seen is this copy, which wraps at the same places.
function paint() {
  paper.replaceChildren(...painted(area.value));
  for (const [line, severity] of Object.entries(marks)) paper.children[line - 1]?.classList.add(severity);
  paper.scrollTop = area.scrollTop;
}

async function send(path, body, replaceText = false) {
  try {
    show(await ask(`${base}/${path}`, body), replaceText);
    tell("");
    return true;
  } catch (error) {
    tell(error.status === 409 ? `${error.message} Copy what you need from here, then reload the page.` : error.message);
    state.textContent = "not stored";
    return false;
  }
}

// One request at a time; each uses the version that the previous one returned.
function queue(work) {
  sending = sending.then(work);
  return sending;
}

function keep() {
  document.dispatchEvent(new CustomEvent("flush")); // fields of the form that were typed into
  return queue(() => {
    clearTimeout(timer); // the pending text is sent now
    return area.value === kept || send("draft", { text: area.value, version });
  });
}

// For the form: change the text on the server, after what was typed here; the answer replaces it.
export function change(path, body) {
  clearTimeout(timer);
  return queue(async () => {
    if (area.value !== kept) await send("draft", { text: area.value, version });
    return send(path, { ...body, version }, true);
  });
}
export const settled = () => queue(() => {});

area.addEventListener("input", () => {
  state.textContent = "typing…";
  paint();
  clearTimeout(timer);
  timer = setTimeout(keep, PAUSE);
});
area.addEventListener("scroll", () => (paper.scrollTop = area.scrollTop));

async function save() {
  await keep();
  if (!get("save").disabled) await queue(() => send("save", { version }));
  document.dispatchEvent(new CustomEvent("saved"));
}
get("save").addEventListener("click", save);
get("discard").addEventListener("click", async () => {
  if (!confirm(`Discard the draft and return to the saved ${name}.yaml?`)) return;
  await keep();
  await queue(() => send("discard", { version }, true));
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "s") {
    event.preventDefault();
    save();
  }
});
document.addEventListener("keep", async ({ detail: ready }) => {
  await keep();
  ready();
});
window.addEventListener("beforeunload", (event) => {
  if (area.value !== kept) event.preventDefault();
});

found.addEventListener("click", (event) => {
  const button = event.target.closest(".jump");
  if (!button) return;
  const lines = area.value.split("\n"), line = Number(button.dataset.line);
  const start = lines.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
  area.focus();
  area.setSelectionRange(start, start + (lines[line - 1] || "").length);
  area.scrollTop = (paper.children[line - 1]?.offsetTop ?? 0) - 60; // px; a few lines above stay in view
});

queue(async () => {
  await send("text", undefined, true);
  area.disabled = false;
});
