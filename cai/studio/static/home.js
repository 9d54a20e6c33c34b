// The start page: a new constitution.
import { ask, get, tell } from "/static/app.js";

get("new").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    location.href = (await ask("/constitutions", { name: new FormData(event.target).get("name").trim() })).page;
  } catch (error) {
    tell(error.message);
  }
});
