// Polls the status of a run, every 2 s while it is running and every 10 s otherwise; stops it and lets it go on.
import { ask, get, tell } from "/static/app.js";

const panel = get("stages"), stop = get("stop"), resume = get("resume"), log = get("log");
let timer = null, stopping = false;

function show(found) {
  if (panel.dataset.html !== found.html) panel.innerHTML = panel.dataset.html = found.html; // escaped by the server
  stop.hidden = !found.alive;
  resume.hidden = found.alive || !found.can_resume;
  if (!found.alive) stopping = false;
  stop.textContent = stopping ? "Stop now, without waiting" : "Stop";
  if (log.textContent !== found.log) log.textContent = found.log;
  log.parentElement.hidden = !found.log;
  if (found.failed) log.parentElement.open = true;
}
async function look() {
  clearTimeout(timer);
  let wait = 10000;
  try {
    const found = await ask(panel.dataset.url);
    show(found);
    if (found.alive) wait = 2000;
    tell("");
  } catch (error) {
    tell(error.message);
  }
  timer = setTimeout(look, wait);
}
async function act(button, path) {
  button.disabled = true;
  try {
    await ask(`${panel.dataset.run}/${path}`, {});
    stopping = path === "stop";
    await look();
  } catch (error) {
    tell(error.message);
  } finally {
    button.disabled = false;
  }
}
stop.addEventListener("click", () => act(stop, "stop"));
resume.addEventListener("click", () => act(resume, "resume"));
look();
