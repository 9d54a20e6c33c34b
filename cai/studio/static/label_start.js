// Remembers the rater's name, and creates queues.
import { ask, get, tell } from "/static/app.js";

const name = get("rater"), form = get("new-queue");
if (name && !name.value) name.value = localStorage.getItem("rater") || "";
form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button"), given = new FormData(form);
  button.disabled = true;
  try {
    await ask("/label/queues", { run: given.get("run"), by: given.get("by"), n: Number(given.get("n")) });
    location.reload();
  } catch (error) {
    tell(error.message);
    button.disabled = false;
  }
});
