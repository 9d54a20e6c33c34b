// Polls the status of a run: every 2 s while it is running, every 10 s otherwise.
import { ask, get, tell } from "/static/app.js";

const panel = get("stages");
async function look() {
  let wait = 10000;
  try {
    const found = await ask(panel.dataset.url);
    if (panel.dataset.html !== found.html) panel.innerHTML = panel.dataset.html = found.html; // escaped by the server
    if (found.in_use) wait = 2000;
    tell("");
  } catch (error) {
    tell(error.message);
  }
  setTimeout(look, wait);
}
setTimeout(look, 2000);
