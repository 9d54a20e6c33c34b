// Preview and comparison: start a job, poll it until it ends, stop it.
import { ask, get, tell } from "/static/app.js";
import { onEdited } from "/static/constitution.js";

const LOOK_EVERY = 700;
const { base } = get("editor").dataset;

function wire(section, path, bodyOf) {
  const form = section.querySelector("form"), panel = section.querySelector(".job-panel");
  let current = "";
  function show(job) {
    if (job.id !== current) return;
    if (panel.dataset.html !== job.html) {
      panel.innerHTML = panel.dataset.html = job.html; // rendered and escaped by the server; the page's policy runs no script in it
    }
    form.querySelector("button").disabled = !job.over;
    if (!job.over) setTimeout(look, LOOK_EVERY, job.id);
  }
  async function look(id) {
    if (id !== current) return;
    try {
      show(await ask(`/jobs/${id}`));
    } catch (error) {
      form.querySelector("button").disabled = false;
      tell(error.message);
    }
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await new Promise((ready) => document.dispatchEvent(new CustomEvent("keep", { detail: ready })));
      const job = await ask(`${base}/${path}`, bodyOf(new FormData(form)));
      current = job.id;
      show(job);
      tell("");
    } catch (error) {
      tell(error.message);
    }
  });
  panel.addEventListener("click", async (event) => {
    if (!event.target.closest(".stop")) return;
    try {
      await ask(`/jobs/${current}/stop`, {});
    } catch (error) {
      tell(error.message);
    }
  });
}

wire(get("try"), "preview", (form) => ({ prompt: form.get("prompt"), kind: form.get("kind"), principle: form.get("principle") }));
wire(get("compare"), "compare", (form) => ({ run: form.get("run"), sample: Number(form.get("sample")) }));

// Update the list of principles when the text changes.
const select = document.querySelector('#try select[name="principle"]');
onEdited((detail) => {
  const chosen = select.value, first = select.options[0];
  select.replaceChildren(first, ...detail.principles.map((id) => new Option(id, id)));
  if (detail.principles.includes(chosen)) select.value = chosen;
});
