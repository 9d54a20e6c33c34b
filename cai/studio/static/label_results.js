// Decisions on disputed pairs: answers of the adjudicator, each of which can be undone.
import { ask, get, tell } from "/static/app.js";

const { base, rater } = get("results").dataset;
function show(box, decided) {
  box.querySelector(".made").hidden = !decided;
  box.querySelector(".made b").textContent = decided;
  box.querySelector(".open").hidden = !!decided;
  box.querySelector(decided ? ".undo" : ".decide").focus();
}
document.addEventListener("click", async ({ target }) => {
  const button = target.closest(".decide, .undo");
  if (!button) return;
  const box = button.closest(".sample"), { key } = box.dataset, { choice } = button.dataset;
  try {
    const answer = await ask(`${base}/${choice ? "answer" : "undo"}`, choice ? { rater, key, choice } : { rater, key });
    if (answer.kept) show(box, choice ? button.textContent : "");
    tell(answer.kept ? "" : "This pair was decided in another tab. Reload the page.");
  } catch (error) {
    tell(error.message);
  }
});
