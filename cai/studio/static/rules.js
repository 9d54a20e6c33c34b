// Parts of the form that are lists: the rules of a check, one a row, and example responses, one a text box.
const RULES = {
  max_words: "At most … words", min_words: "At least … words", max_sentences: "At most … sentences",
  matches: "Matches the pattern", not_matches: "Doesn't match the pattern", contains_any: "Has one of these words", no_lists: "Has no list",
  ends_with: "Ends with one of", language: "Is in the language", refuses: "Is a refusal", json_schema: "Is JSON of the schema",
};
const HINTS = { number: "a number", lines: "one a line", json: '{"type": "object"}', text: "" };

export const nameOf = (rule) => RULES[rule] || rule;

export function make(tag, props = {}, ...children) {
  const made = Object.assign(document.createElement(tag), props);
  made.append(...children);
  return made;
}

// What was typed, as the YAML should have it. What can't be read stays text, so that the server says what is wrong with it.
const READ = {
  number: (text) => (/^[+-]?\d+$/.test(text) ? Number(text) : text),
  choice: (text) => text === "true",
  lines: (text) => text.split("\n").map((line) => line.trim()).filter(Boolean),
  text: (text) => text,
  json: (text) => {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  },
};
const inWords = (value) =>
  Array.isArray(value) ? value.join("\n") : typeof value === "string" ? value : value === null || value === undefined ? "" : JSON.stringify(value);

function valueControl(input, about, value) {
  const shown = inWords(value), label = `Value: ${about}`;
  let control;
  if (input === "choice") {
    control = make("select", {}, new Option("yes", "true"), new Option("no", "false"));
    if (!["", "true", "false"].includes(shown)) control.append(new Option(shown, shown));
    control.value = shown || "true";
  } else if (input === "lines" || input === "json") {
    control = make("textarea", { rows: Math.min(5, shown.split("\n").length + 1), value: shown, placeholder: HINTS[input], spellcheck: false });
  } else {
    control = make("input", { type: "text", value: shown, placeholder: HINTS[input], maxLength: 1000, spellcheck: false });
    if (input === "number") control.inputMode = "numeric";
  }
  control.className = `rule-value ${input}`;
  control.setAttribute("aria-label", label);
  control.title = about;
  return control;
}

function kindsControl(kinds, chosen) {
  const pairs = kinds.flatMap((a, i) => kinds.slice(i + 1).map((b) => `${a} ${b}`));
  const control = make("select", { className: "for-kinds" }, new Option("on all its kinds of prompt", ""));
  for (const key of [...kinds, ...pairs]) control.append(new Option(`on ${key.replace(" ", " and ")}`, key));
  const key = chosen.join(" ");
  if (![...control.options].some((o) => o.value === key)) control.append(new Option(`on ${key}`, key));
  control.value = key;
  control.setAttribute("aria-label", "Kinds of prompt that the rule is for");
  return control;
}

// Keeps what is being typed: an answer to an earlier edit, or one that comes while the part has the focus, must not build it anew.
function steady(element, read, build, tell) {
  let sent = "", seen = "";
  return {
    changed: (now) => {
      sent = JSON.stringify(read());
      tell(read(), now);
    },
    fill: (found) => {
      const now = JSON.stringify(found);
      if (sent && sent !== now) return;
      if (now !== seen && now !== JSON.stringify(read()) && !element.contains(document.activeElement)) build(found);
      sent = "";
      seen = now;
    },
    refused: () => (sent = ""),
  };
}

// rules: name, about and input of each; tell(rows, now): called with what the YAML should have.
export function ruleRows(rules, kinds, tell) {
  const rows = make("div", { className: "rules" }), byName = Object.fromEntries(rules.map((r) => [r.name, r]));
  const inputOf = (name) => byName[name]?.input || "json";
  const read = () =>
    [...rows.children]
      .map((row) => {
        const rule = row.querySelector(".rule").value, input = inputOf(rule), text = row.querySelector(".rule-value")?.value ?? "";
        const key = row.querySelector(".for-kinds").value;
        return rule && text.trim() ? { rule, value: READ[input](input === "text" ? text : text.trim()), kinds: key ? key.split(" ") : [] } : null;
      })
      .filter(Boolean);

  function row({ rule, value, kinds: chosen }) {
    const box = make("div", { className: "rule-row" });
    let before = rule;
    const select = make("select", { className: "rule" }, new Option("Choose a rule", ""));
    for (const { name, about } of rules) select.append(Object.assign(new Option(nameOf(name), name), { title: about }));
    if (rule && !byName[rule]) select.append(new Option(`${rule} (unknown)`, rule));
    select.value = rule;
    select.setAttribute("aria-label", "Rule");
    const remove = make("button", { type: "button", textContent: "×", title: "Remove this rule" });
    remove.setAttribute("aria-label", "Remove this rule");
    box.append(select, valueControl(inputOf(rule), byName[rule]?.about || rule, value), kindsControl(kinds, chosen), remove);
    select.addEventListener("change", () => {
      const old = box.querySelector(".rule-value"), input = inputOf(select.value);
      const kept = old.classList.contains(input) || !byName[before] ? old.value : ""; // of a rule with the same kind of value, or a misspelt one
      old.replaceWith(valueControl(input, byName[select.value]?.about || select.value, kept));
      before = select.value;
      part.changed(true);
    });
    box.addEventListener("input", (event) => event.target.matches(".rule-value") && part.changed(event.target.tagName === "SELECT"));
    box.querySelector(".for-kinds").addEventListener("change", () => part.changed(true));
    remove.addEventListener("click", () => {
      box.remove();
      part.changed(true);
    });
    return box;
  }
  const add = make("button", { type: "button", textContent: "Add a rule", className: "add-rule" });
  add.addEventListener("click", () => {
    rows.append(row({ rule: "", value: "", kinds: [] }));
    rows.lastElementChild.querySelector(".rule").focus();
  });
  const part = steady(rows, read, (found) => rows.replaceChildren(...found.map(row)), tell);
  return { element: make("div", {}, rows, add), ...part };
}

export function exampleRows(tell) {
  const lists = { good: make("div"), bad: make("div") };
  const read = () => {
    const texts = (list) => [...list.querySelectorAll("textarea")].map((area) => area.value.trim()).filter(Boolean);
    return { good: texts(lists.good), bad: texts(lists.bad) };
  };
  function one(name, text) {
    const area = make("textarea", { rows: 2, value: text, maxLength: 4000, spellcheck: true });
    area.setAttribute("aria-label", name === "good" ? "A response that follows it" : "A response that breaks it");
    const remove = make("button", { type: "button", textContent: "×", title: "Remove this example" });
    remove.setAttribute("aria-label", "Remove this example");
    const box = make("div", { className: "example" }, area, remove);
    area.addEventListener("input", () => part.changed(false));
    remove.addEventListener("click", () => {
      box.remove();
      part.changed(true);
    });
    return box;
  }
  const column = (name, title, label) => {
    const add = make("button", { type: "button", textContent: label, className: `add-${name}` });
    add.addEventListener("click", () => {
      lists[name].append(one(name, ""));
      lists[name].lastElementChild.querySelector("textarea").focus();
    });
    return make("div", { className: `examples-of ${name}` }, make("p", { className: "hint", textContent: title }), lists[name], add);
  };
  const element = make("div", { className: "example-columns" },
    column("good", "They follow it", "Add a good example"), column("bad", "They break it", "Add a bad example"));
  const build = (found) => {
    for (const name of ["good", "bad"]) lists[name].replaceChildren(...found[name].map((text) => one(name, text)));
  };
  const part = steady(element, read, build, tell);
  return { element, ...part };
}
