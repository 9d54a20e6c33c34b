// Highlights YAML for the editor: comments, keys, quoted texts. Block texts (after `>` or `|`) have none of them.
const PIECES = [
  ["comment", /(?:^|(?<=\s))#.*/y],
  ["field-name", /(?<=^\s*(?:- +)*)[\w-]+(?=:(?:\s|$))/y],
  ["quoted", /(?<=(?:^|[:,[{-])\s*)(?:"(?:[^"\\]|\\.)*"|'(?:[^']|'')*')/y],
];
const BLOCK = /(?:^|[\s:-])[>|][-+\d]*\s*(?:#.*)?$/, ITEM = /^\s*(?:- +)*/;

function row(line, plain) {
  const made = document.createElement("div");
  let text = "";
  for (let at = 0; at < line.length; ) {
    const [kind, found] = plain ? [] : match(line, at);
    if (!found) {
      text += line[at++];
      continue;
    }
    made.append(text, Object.assign(document.createElement("span"), { className: kind, textContent: found }));
    text = "";
    at += found.length;
  }
  made.append(text);
  return made;
}

function match(line, at) {
  for (const [kind, pattern] of PIECES) {
    pattern.lastIndex = at;
    const found = pattern.exec(line);
    if (found) return [kind, found[0]];
  }
  return [];
}

// One element per line of the text.
export function painted(text) {
  let block = -1; // column of the key whose block text this is
  return text.split("\n").map((line) => {
    const column = line.search(/\S/);
    if (column >= 0 && column <= block) block = -1;
    const plain = block >= 0;
    if (!plain && BLOCK.test(line)) block = line.match(ITEM)[0].length;
    return row(line, plain);
  });
}
