// Plans and starts a run.
import { ask, get, tell } from "/static/app.js";

const form = get("start");
function asked() {
  const given = Object.fromEntries(new FormData(form));
  return { ...given, name: given.name.trim(), model: given.model.trim(), only: given.only.trim(), settings: given.settings.split("\n").map((s) => s.trim()).filter(Boolean) };
}
async function busy(work) {
  const buttons = form.querySelectorAll("button");
  for (const button of buttons) button.disabled = true;
  form.setAttribute("aria-busy", "true");
  tell("");
  try {
    await work();
  } catch (error) {
    tell(error.message);
  } finally {
    for (const button of buttons) button.disabled = false;
    form.removeAttribute("aria-busy");
  }
}
get("plan")?.addEventListener("click", () =>
  busy(async () => {
    get("planned").textContent = "Planning…";
    try {
      get("planned").innerHTML = (await ask("/plan", asked())).html; // escaped by the server
    } catch (error) {
      get("planned").textContent = "";
      throw error;
    }
  }),
);
form?.addEventListener("submit", (event) => {
  event.preventDefault();
  busy(async () => {
    location.href = (await ask("/runs", asked())).page;
  });
});
