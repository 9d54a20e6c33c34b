// One pair at a time, by keyboard. The server confirms each answer before the next pair is shown.
import { ask, get, tell } from "/static/app.js";

const SETTLE = 200; // ms; a key press for the previous pair must not answer this one
const { base, rater } = get("rate").dataset;
const KEYS = { a: "a", arrowleft: "a", 1: "a", b: "b", arrowright: "b", 2: "b", t: "tie", 0: "tie", x: "both-bad" };
const note = get("note");
let noted = ""; // note of the last answer, which undo brings back
let key = null, last = null, skipped = [], busy = true, shownAt = 0;

function show(answer) {
  key = answer.key;
  last = answer.last;
  get("pair").innerHTML = answer.html; // rendered and escaped by the server; the page's policy runs no script in it
  get("pair").setAttribute("aria-busy", "false");
  get("bar").max = answer.total || 1;
  get("bar").value = answer.done;
  get("count").textContent = `${answer.done} of ${answer.total}`;
  get("undo").disabled = last === null;
  for (const button of document.querySelectorAll("[data-choice], #skip")) button.disabled = key === null;
  if (scrollY > get("rate").offsetTop) scrollTo(0, 0);
  shownAt = performance.now();
}

async function send(path, body) {
  if (busy) return;
  busy = true;
  try {
    const answer = await ask(`${base}/${path}`, { rater, ...body });
    show(answer);
    tell(answer.kept ? "" : "You have already answered this pair in another tab. The first answer is kept.");
  } catch (error) {
    tell(error.message);
  } finally {
    busy = false;
  }
}

async function choose(choice) {
  if (key === null || busy) return;
  const before = key, text = note.value;
  await send("answer", { key, choice, skipped, note: text });
  if (key === before) return; // not stored
  noted = text;
  note.value = "";
}
async function undo() {
  if (last === null || busy) return;
  const before = last;
  await send("undo", { key: last });
  if (key === before) note.value = noted;
  noted = "";
}
function skip() {
  if (key === null) return;
  skipped = [...skipped.filter((k) => k !== key), key];
  note.value = "";
  send("next", { skipped });
}

note.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === "Escape") && note.blur());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.closest("input, select, textarea")) return;
  const pressed = event.key.toLowerCase();
  if (pressed === "g" && get("guide")) get("guide").open = !get("guide").open;
  else if (pressed === "n") note.focus(); // at once: what is typed next must not become answers
  else if (performance.now() - shownAt < SETTLE) return;
  else if (KEYS[pressed]) choose(event.shiftKey && KEYS[pressed].length === 1 ? `${KEYS[pressed]}-slightly` : KEYS[pressed]);
  else if (pressed === "s") skip();
  else if (pressed === "u" || pressed === "backspace") undo();
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("[data-choice]")) button.addEventListener("click", () => choose(button.dataset.choice));
get("skip").addEventListener("click", skip);
get("undo").addEventListener("click", undo);

if (get("guide") && innerWidth < 1200) get("guide").open = false;
localStorage.setItem("rater", rater);
busy = false;
send("next", { skipped });
