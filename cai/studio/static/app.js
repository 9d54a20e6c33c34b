// Shared by all pages: JSON requests, and a line for error messages.

export async function ask(url, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(url, options);
  } catch {
    throw new Error("The studio does not answer. Is it still running? All confirmed changes are saved.");
  }
  const isJson = (answer.headers.get("content-type") || "").startsWith("application/json");
  const found = isJson ? await answer.json() : { error: await answer.text() };
  if (!answer.ok) {
    const error = new Error(found.error || answer.statusText);
    error.status = answer.status;
    throw error;
  }
  return found;
}

export function tell(text) {
  const line = document.getElementById("told");
  line.textContent = text || "";
  line.hidden = !text;
}

export const get = (id) => document.getElementById(id);
