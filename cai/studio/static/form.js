// The form: one block per principle, its statement first. Every edit changes the YAML text on the server, which keeps comments and layout.
import { ask, get, tell } from "/static/app.js";
import { change, onEdited, settled } from "/static/constitution.js";
import { exampleRows, make, nameOf, ruleRows } from "/static/rules.js";

const PAUSE = 600, LOOK_EVERY = 700;
const list = get("principles"), form = get("form");
const { base } = get("editor").dataset;
const defaults = JSON.parse(form.dataset.defaults), kinds = form.dataset.kinds.split(" ");
const rules = JSON.parse(form.dataset.rules), lists = new WeakMap(); // of a block: its rules and examples
const LABELS = {
  critique: "Critique request", revision: "Revision request",
  ask_positive: "Question: Yes is good", ask_negative: "Question: Yes is bad", compare: "Question about two responses",
};
const PLACEHOLDERS = {
  statement: "What a response should do, in one or two sentences", weight: "1",
  openings: "such as: I can't help with that.", source: "A document, a page or a person",
};
const READ = { // what was typed, as the YAML should have it; the server says what is wrong with the rest
  weight: (text) => (/^\s*[+-]?(\d+\.?\d*|\.\d+)\s*$/.test(text) ? Number(text) : text.trim()),
  openings: (text) => text.split("\n").map((line) => line.trim()).filter(Boolean),
};
const OF_THEIR_OWN = ["check", "examples", "openings"]; // fields that are sent beside the values
const panels = new Map(); // of drafting jobs, by the statement that they draft from
const fresh = new Set(); // statements that were written here, and not yet drafted from
let alone = form.dataset.alone === "yes", shown = [], forms = [], language = "", timer = 0, pending = null, dragged = -1;

// One field is pending at a time: typing into another sends the first.
function flush() {
  clearTimeout(timer);
  const now = pending;
  pending = null;
  const named = now && { [now.name]: now.value };
  const body = now && (OF_THEIR_OWN.includes(now.name) ? named : { values: named });
  return now && change("principle", { index: now.index, ...body }).then((stored) => stored || blame(now.index));
}
// What the server refused is said at its principle, not over the page.
function blame(index) {
  const text = get("told").textContent;
  list.children[index]?.querySelector(".found[data-of='']").replaceChildren(make("li", { textContent: text, className: "error" }));
  for (const part of Object.values(lists.get(list.children[index]) || {})) part.refused();
  if (list.children[index]) tell("");
  return false;
}
function typed(index, name, value) {
  if (pending && (pending.index !== index || pending.name !== name)) flush();
  clearTimeout(timer);
  pending = { index, name, value };
  if (name === "statement") fresh.add(value.trim());
  get("state").textContent = "typing…";
  timer = setTimeout(flush, PAUSE);
}
document.addEventListener("flush", flush);

function field(index, name, label, rows) {
  const area = make(rows ? "textarea" : "input", { value: "", maxLength: 4000, spellcheck: true });
  if (rows) area.rows = rows;
  else area.type = "text";
  area.dataset.name = name;
  area.addEventListener("input", () => typed(index, name, READ[name] ? READ[name](area.value) : area.value));
  if (name === "statement") area.addEventListener("change", draftFresh);
  const mark = make("span", { className: "tag drafted", hidden: true, textContent: "drafted by a model" });
  return make("div", { className: `field-of ${name}` }, make("label", { className: "field" }, make("span", {}, `${label} `, mark), area), name === "weight" ? "" : says(name));
}
function says(name) {
  const found = make("ul", { className: "found" });
  found.dataset.of = name;
  return found;
}

function block(index, count) {
  const act = (text, title, work, disabled = false) =>
    Object.assign(make("button", { type: "button", textContent: text, title, disabled }), { onclick: async () => (await flush(), work()) });
  const move = async (to) => {
    await change("arrange", { action: "move", index, to });
    list.children[to]?.querySelector(`[title="${to < index ? "Move up" : "Move down"}"]:enabled, [data-name="statement"]`)?.focus();
  };
  const name = field(index, "id", "Id", 0), more = make("a", { className: "button about", textContent: "Results" });
  const box = make("article", { className: "principle-form card" });
  const handle = make("span", { className: "handle", textContent: "⠿", title: "Drag to reorder", draggable: true });
  handle.addEventListener("dragstart", (event) => {
    dragged = index;
    event.dataTransfer.setData("text/plain", String(index));
    event.dataTransfer.setDragImage(box, 0, 0);
  });
  box.addEventListener("dragover", (event) => dragged >= 0 && event.preventDefault());
  box.addEventListener("drop", async (event) => {
    event.preventDefault();
    const from = dragged;
    dragged = -1;
    if (from >= 0 && from !== index) await change("arrange", { action: "move", index: from, to: index });
  });
  const remove = act("Remove", "Remove this principle", () => {
    if (confirm("Remove this principle from the draft?")) return change("arrange", { action: "remove", index });
  }, count < 2);
  const kindBoxes = make("fieldset", { className: "kinds" }, make("legend", { textContent: "Kinds of prompt" }));
  for (const kind of kinds) {
    const check = make("input", { type: "checkbox", value: kind });
    check.addEventListener("change", async () => {
      await flush();
      const chosen = [...kindBoxes.querySelectorAll("input:checked")].map((c) => c.value);
      if (chosen.length) await change("principle", { index, values: { applies_to: chosen } });
      else check.checked = true; // a principle applies to at least one kind
    });
    kindBoxes.append(make("label", {}, check, ` ${kind}`));
  }
  const words = make("details", { className: "more words-of" }, make("summary"));
  words.append(...Object.entries(LABELS).map(([key, label]) => field(index, key, label, 2)));
  words.append(Object.assign(act("", "Let the model write these texts; what a person wrote stays", () => draft(index)), { className: "draft" }));
  const changed = (name) => (value, now) => (typed(index, name, value), now && flush());
  const parts = { check: ruleRows(rules, kinds, changed("check")), examples: exampleRows(changed("examples")) };
  lists.set(box, parts);
  const weight = field(index, "weight", "Weight", 0), checks = make("details", { className: "more checks-of" }, make("summary"));
  Object.assign(weight.querySelector("input"), { inputMode: "decimal", title: "How often it is drawn, compared with the others" });
  checks.append(
    make("p", { className: "hint", textContent: "Rules decide without a model whether a response follows the principle; all must hold. They are tested on the examples." }),
    parts.check.element, says("check"), parts.examples.element, says("examples"));
  const rest = make("details", { className: "more rest-of" }, make("summary"));
  rest.append(
    make("p", { className: "hint", textContent: "In training, answers that were told the principle begin with one of the openings." }),
    field(index, "openings", "Openings, one a line", 2), field(index, "source", "Source", 0));
  box.append(
    field(index, "statement", "Statement: what a response should do", 3),
    make("div", { className: "actions" }, handle, name, more, act("↑", "Move up", () => move(index - 1), index === 0),
      act("↓", "Move down", () => move(index + 1), index === count - 1), remove),
    make("div", { className: "actions" }, kindBoxes, weight), says("weight"), says("applies_to"), words, checks, rest, says(""),
  );
  return box;
}

function fill(box, principle, wordings) {
  box.querySelector(".about").href = `${base}/principles/${encodeURIComponent(principle.id)}`;
  box.querySelector(".about").title = `Adherence, prompts, examples and changes of ${principle.id}`;
  const statement = principle.statement === form.dataset.unwritten ? "" : principle.statement;
  const values = { id: principle.id, statement, weight: String(principle.weight ?? ""), ...principle.wording };
  Object.assign(values, { openings: principle.openings.join("\n"), source: principle.source });
  for (const control of box.querySelectorAll("[data-name]")) {
    const value = values[control.dataset.name] || "", mark = control.parentElement.querySelector(".drafted");
    control.placeholder = wordings[control.dataset.name] || PLACEHOLDERS[control.dataset.name] || "";
    if (control !== document.activeElement && control.value !== value) control.value = value;
    mark.hidden = !principle.drafted.includes(control.dataset.name);
  }
  for (const check of box.querySelectorAll(".kinds input")) check.checked = principle.applies_to.includes(check.value);
  const own = Object.keys(principle.wording).length, drafted = principle.drafted.length;
  lists.get(box).check.fill(principle.check);
  lists.get(box).examples.fill(principle.examples);
  const { good, bad } = principle.examples, count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
  box.querySelector(".checks-of summary").textContent =
    `Check by rule: ${principle.check.length ? count(principle.check.length, "rule") : "none"}; ${count(good.length + bad.length, "example")}`;
  const words = box.querySelector(".words-of"), panel = panels.get(principle.statement);
  words.querySelector(".draft").textContent = drafted ? "Draft again from the statement" : "Draft from the statement";
  if (drafted > Number(words.dataset.drafted ?? drafted)) words.open = true;
  words.dataset.drafted = drafted;
  if (panel && !panel.isConnected) box.append(panel); // the blocks were made anew
  box.querySelector(".rest-of summary").textContent = `Openings: ${principle.openings.length || "none"}; source: ${principle.source ? "given" : "none"}`;
  words.querySelector("summary").textContent =
    `Requests and questions: ${own ? `${own} of its own` : "the default ones, which quote the statement"}${drafted ? `, ${drafted} drafted` : ""}`;
  for (const said of box.querySelectorAll(".found")) {
    const mine = principle.problems.filter(({ field }) => (box.querySelector(`.found[data-of="${CSS.escape(field)}"]`) ? field : "") === said.dataset.of);
    said.replaceChildren(...mine.map(({ severity, text }) => make("li", { textContent: text.replace(/^\w+(?=: )/, nameOf), className: severity })));
  }
  for (const part of box.querySelectorAll("details")) {
    const faults = part.querySelectorAll(".found li").length;
    if (faults > Number(part.dataset.faults || 0)) part.open = true;
    part.dataset.faults = faults;
  }
}

onEdited((detail) => {
  const open = new Set([...list.querySelectorAll("details[open]")].map((d) => `${d.className} ${d.closest("article").dataset.id}`));
  const ids = detail.form.map((p) => p.id);
  const renamed = ids.length === shown.length && ids.filter((id, i) => id !== shown[i]).length < 2; // the blocks stay, and with them what is being typed
  if (!renamed || list.childElementCount !== ids.length) list.replaceChildren(...ids.map((_, i) => block(i, ids.length)));
  shown = ids;
  forms = detail.form;
  language = detail.language;
  detail.form.forEach((principle, i) => {
    const box = list.children[i];
    box.dataset.id = principle.id;
    for (const d of box.querySelectorAll("details")) if (open.has(`${d.className} ${principle.id}`)) d.open = true;
    fill(box, principle, defaults[detail.language] || {}); // of another language: none
  });
  const bare = detail.form.filter((p) => !Object.keys(p.wording).length && p.statement !== form.dataset.unwritten).length;
  get("bare").hidden = !bare;
  get("bare").firstElementChild.textContent =
    `${bare === 1 ? "One principle has" : `${bare} principles have`} only a statement. That is enough: the default requests and questions quote it. ` +
    (form.dataset.alone === "yes"
      ? "A model drafts more specific ones of what you write here, to be read before you save."
      : "A model can draft more specific ones, to be read before you save. The embedded one is too small to do it well: start the studio with --model.");
  get("add").disabled = !detail.form.length;
  if (!detail.form.length) list.textContent = "The text can't be read as YAML, so there is no form for it. Correct it under YAML.";
});

get("add").addEventListener("click", async () => {
  await flush();
  await change("arrange", { action: "add" });
  const last = list.lastElementChild?.querySelector('[data-name="statement"]');
  last?.focus();
  last?.select();
});

// Drafting by a model. The page writes what a job drafted, in turn with its other edits.
async function draft(index = null) {
  const statement = index === null ? "" : forms[index].statement, panel = make("div", { className: "job-panel", ariaLive: "polite" });
  panels.get(statement)?.remove();
  panels.set(statement, panel);
  if (index === null) get("bare").after(panel);
  else list.children[index].append(panel);
  let job = null, html = "";
  panel.addEventListener("click", (event) => {
    if (event.target.closest(".stop")) ask(`/jobs/${job.id}/stop`, {}).catch((error) => tell(error.message));
  });
  try {
    job = await ask(`${base}/word`, { index });
    for (let part = 0; ; ) {
      if (html !== job.html) panel.innerHTML = html = job.html; // rendered and escaped by the server; the page's policy runs no script in it
      for (const ready = panel.querySelectorAll(".worded").length; part < ready; part++) await put(job.id, part, panel);
      if (job.over) break;
      await new Promise((ready) => setTimeout(ready, LOOK_EVERY));
      job = await ask(`/jobs/${job.id}`);
    }
    alone &&= job.state !== "failed"; // no model at hand: it was said once
  } catch (error) {
    panel.textContent = error.message;
  }
}
async function put(job, part, panel) {
  const area = get("text"); // the answer replaces its text, so it must not be typed into
  if (document.activeElement === area) await new Promise((ready) => area.addEventListener("blur", ready, { once: true }));
  if (await change("worded", { job, part })) return;
  panel.append(make("p", { textContent: get("told").textContent }));
  tell("");
}
get("bare").querySelector("button").addEventListener("click", async () => (await flush(), draft()));

// A statement that was written here, is complete, and has no requests and questions, gets drafts of them.
// Only in English: its template is in no other language.
async function draftFresh() {
  await flush();
  await settled();
  if (alone && language === "en") forms.forEach((p, i) => !Object.keys(p.wording).length && fresh.delete(p.statement) && draft(i));
}
document.addEventListener("saved", draftFresh);

// Tabs.
function choose(name) {
  flush();
  for (const [tab, panel] of [["form", "form"], ["text", "sheet"]]) {
    get(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
    get(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
    get(panel).hidden = tab !== name;
  }
}
for (const name of ["form", "text"]) {
  get(`tab-${name}`).addEventListener("click", () => choose(name));
  get(`tab-${name}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = name === "form" ? "text" : "form";
    choose(other);
    get(`tab-${other}`).focus();
  });
}
get("found").addEventListener("click", (event) => event.target.closest(".jump") && choose("text"), true);
choose("form");

// Earlier versions.
const past = get("history");
async function showVersions() {
  if (!past.open) return;
  try {
    past.querySelector("div").innerHTML = (await ask(`${base}/history`)).html; // escaped by the server
  } catch (error) {
    tell(error.message);
  }
}
past.addEventListener("toggle", (event) => event.target === past && showVersions());
past.addEventListener("click", async (event) => {
  const button = event.target.closest(".restore");
  if (!button) return;
  await flush();
  await change("restore", { key: button.dataset.key });
  await showVersions();
});
