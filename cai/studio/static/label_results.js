// Decisions on disputed pairs: answers of the adjudicator.
import { ask, get, tell } from "/static/app.js";

const { base, rater } = get("results").dataset;
document.addEventListener("click", async (event) => {
  const button = event.target.closest(".decide");
  if (!button) return;
  const box = button.closest(".sample");
  try {
    const answer = await ask(`${base}/answer`, { rater, key: box.dataset.key, choice: button.dataset.choice });
    box.querySelector(".actions").textContent = answer.kept ? `decided: ${button.textContent}` : "decided in another tab; reload the page";
    tell("");
  } catch (error) {
    tell(error.message);
  }
});
