// Coloured text: each character by the expert that processed it, a page at a time.

const NOBODY = -1; // where the model did not read; a character without an expert has the code `none`
const NUM_COLOURS = 8; // of experts; the numbers tell those of one colour apart
const GRAPHEMES = globalThis.Intl?.Segmenter && new Intl.Segmenter("en", { granularity: "grapheme" });

const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
const whole = (base64, below) => new (below > 32768 ? Int32Array : below > 128 ? Int16Array : Int8Array)(bytes(base64).buffer);
const percent = (part) => (part > 0 && part < 0.001 ? "below 0.1%" : `${Number((100 * part).toPrecision(part < 0.1 ? 2 : 3))}%`);

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// What is drawn as one: a base and its accents, a picture of several. A line break is always alone.
function together(letters) {
  if (!GRAPHEMES) return letters.map((letter) => [letter]);
  const parts = Array.from(GRAPHEMES.segment(letters.join("")), ({ segment }) => Array.from(segment));
  return parts.flatMap((part) => (part.includes("\n") ? part.map((letter) => [letter]) : [part]));
}

class ColouredText extends Key {
  constructor(root) {
    super();
    const part = (name) => root.querySelector(`.${name}`);
    const data = JSON.parse(root.querySelector("script").textContent);
    this.letters = Array.from(data.text);
    Object.assign(this, { ...data, part, start: 0, caret: 0, cells: [], found: new Set() });
    this.box = part("letters");
    this.box.tabIndex = 0;
    const states = { role: "textbox", "aria-readonly": "true", "aria-multiline": "true" }; // so that arrows come through
    for (const [name, value] of Object.entries(states)) this.box.setAttribute(name, value);
    this.listen(root);
    part("controls").hidden = false;
    const layers = this.views.filter((view) => view.palette === "expert");
    if (layers.length > 1) this.addAll(layers);
    this.choose(Number(root.querySelector(".views :checked").value));
  }

  listen(root) {
    const { part, box } = this;
    part("views").addEventListener("change", (event) => this.choose(Number(event.target.value)));
    const numbers = root.querySelector(".numbers input");
    numbers.checked = true; // browsers remember
    numbers.addEventListener("change", () => box.classList.toggle("plain", !numbers.checked));
    part("previous").addEventListener("click", () => this.move(this.start - this.page));
    part("next").addEventListener("click", () => this.move(this.start + this.page));
    part("copy").addEventListener("click", (event) => this.copy(event.target));
    root.addEventListener("keydown", (event) => event.key === "Escape" && this.only.size && this.showOnly());
    part("go").addEventListener("change", (event) => event.target.value && this.move(event.target.value - 1));
    const find = ({ key, target }) => (key === "Enter" || !target.value) && this.find(target.value);
    for (const kind of ["keydown", "input"]) part("find").addEventListener(kind, find); // an empty field has no marks
    const at = (event) => this.start + this.cells.indexOf(event.target);
    const last = (event) => this.start + this.cells.lastIndexOf(event.target);
    box.addEventListener("mouseover", (event) => at(event) >= this.start && this.tell(at(event), last(event)));
    box.addEventListener("mouseleave", () => this.tell(this.caret));
    box.addEventListener("click", (event) => at(event) >= this.start && this.move(at(event)));
    box.addEventListener("focus", () => this.tell(this.caret));
    box.addEventListener("keydown", (event) => this.press(event));
  }

  // Another layer, or the odds.
  choose(number) {
    const view = this.views[number];
    const layers = view.layers ?? [view];
    for (const layer of layers) {
      if (typeof layer.codes !== "string") continue;
      for (const key of ["gate", "second_probability"]) if (layer[key]) layer[key] = bytes(layer[key]);
      for (const key of ["codes", "second", "number"]) if (layer[key]) layer[key] = whole(layer[key], layer.names.length);
    }
    Object.assign(this, { view, layers, only: new Set() });
    this.showKey();
    this.draw(this.start);
  }

  // The page that begins at `start`: each character's cell, which accents share with their base. A sign stands for a
  // line break, and for what would not be seen or would change the rest.
  draw(start) {
    this.start = start;
    const shown = this.letters.slice(start, start + this.page);
    const groups = together(shown).map(([letter, ...rest]) => {
      const text = letter === "\n" ? "" : [this.signs[letter] ?? letter, ...rest].join("");
      return { cell: make("span", {}, text), size: 1 + rest.length, after: letter === "\n" ? ["\n"] : [] };
    });
    this.cells = groups.flatMap(({ cell, size }) => new Array(size).fill(cell));
    this.box.replaceChildren(...groups.flatMap(({ cell, after }) => [cell, ...after]));
    const number = (n) => n.toLocaleString("en");
    const end = start + shown.length;
    this.part("where").textContent = `${number(start + 1)} to ${number(end)} of ${number(this.letters.length)}`;
    this.part("previous").disabled = start === 0;
    this.part("next").disabled = end >= this.letters.length;
    this.colour();
    this.point();
  }

  // A mark stands where a run of one expert begins.
  colour() {
    let before = null;
    this.cells.forEach((cell, i) => {
      if (cell === this.cells[i - 1]) return; // an accent has the colour of its base
      if (this.view.layers) this.stripe(cell, this.start + i);
      const code = this.view.layers ? NOBODY : this.view.codes[this.start + i];
      const shown = this.isShown(code, `0:${code}`);
      const names = [shown ? this.colourOf(code) : "none"];
      if (this.letters[this.start + i] === "\n") names.push("break");
      if (this.odds && !this.odds[this.start + i]) names.push("given");
      if (this.found.has(this.start + i)) names.push("found");
      cell.className = names.join(" ");
      if (shown && code !== before) cell.dataset.mark = this.view.marks[code];
      else delete cell.dataset.mark;
      before = shown ? code : null;
    });
  }

  // --- the caret ---

  move(to) {
    this.caret = Math.max(0, Math.min(this.letters.length - 1, Math.floor(to) || 0));
    const start = this.caret - (this.caret % this.page);
    if (start !== this.start) this.draw(start);
    this.point();
    this.cells[this.caret - this.start]?.scrollIntoView({ block: "nearest" });
  }

  point() {
    this.box.querySelector("[data-caret]")?.removeAttribute("data-caret");
    const cell = this.cells[this.caret - this.start];
    if (cell) cell.dataset.caret = "";
    this.tell(this.caret);
  }

  press(event) {
    const within = this.caret - this.start;
    const steps = {
      ArrowLeft: () => this.caret - 1,
      ArrowRight: () => this.caret + 1,
      ArrowUp: () => this.beside(within, -1),
      ArrowDown: () => this.beside(within, 1),
      PageUp: () => this.start - this.page,
      PageDown: () => (this.start + this.page < this.letters.length ? this.start + this.page : this.caret),
      Home: () => 0,
      End: () => this.letters.length - 1,
    };
    if (!Object.hasOwn(steps, event.key) || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.move(steps[event.key]());
  }

  // The character above (-1) or below (1) one of the page, as the lines are broken.
  beside(from, direction) {
    const { offsetTop: top, offsetLeft: left } = this.cells[from];
    let to = from + direction;
    while (this.cells[to]?.offsetTop === top) to += direction;
    const line = this.cells[to]?.offsetTop;
    const away = (i) => Math.abs(this.cells[i].offsetLeft - left);
    for (let i = to; this.cells[i]?.offsetTop === line && line !== undefined; i += direction) if (away(i) < away(to)) to = i;
    return this.start + to;
  }

  // Marks every place and moves to the next after the caret, from the beginning again after the last; capitals do not matter.
  find(words) {
    const [sought, text] = [Array.from(words), this.letters].map((letters) => letters.map((letter) => letter.toLowerCase()));
    const places = sought.length ? [...text.keys()].filter((at) => sought.every((letter, i) => text[at + i] === letter)) : [];
    this.found = new Set(places.flatMap((at) => sought.map((_, i) => at + i)));
    this.colour();
    if (places.length) this.move(places.find((at) => at > this.caret) ?? places[0]);
    const which = `”: ${places.indexOf(this.caret) + 1} of ${places.length.toLocaleString("en")}. `;
    const told = places.length ? [which, ...this.part("about").childNodes] : ["” is not in the text."];
    if (sought.length) this.part("about").replaceChildren("“", make("bdi", {}, words), ...told);
  }

  // --- what is known of a character, or of all that are drawn as one ---

  tell(first, last = first) {
    const numbers = Array.from({ length: last - first + 1 }, (_, k) => first + k);
    if (first < this.letters.length) this.part("about").replaceChildren(...numbers.flatMap((i) => this.about(i)));
  }

  about(i) {
    const place = make("span", { className: "place" }, `character ${(i + 1).toLocaleString("en")}`);
    const facts = [...this.layers.map((layer) => this.decided(i, layer)), ...this.chance(i)].filter((fact) => fact.length);
    const shown = facts.flatMap((fact) => [make("span", {}, ...[fact].flat()), " "]);
    return [make("b", {}, ...this.nameOf(this.letters[i])), " ", ...shown, place, " "];
  }

  // It does not reorder what stands beside it.
  nameOf(letter) {
    return this.names[letter] ? [this.names[letter]] : ["“", make("bdi", {}, letter), "”"];
  }

  decided(i, { palette, codes, label, names, none, gate, scale = 1, number, second, second_probability: chance }) {
    if (palette !== "expert" || codes[i] === NOBODY) return palette === "expert" ? "not read by the model" : "";
    const likely = second[i] === NOBODY ? "" : ` ${second[i]} (${(chance[i] / 255).toFixed(2)})`;
    if (codes[i] === none) return `${label}: ${names[none]}, most probable${likely}`;
    const of = number?.[i] > 1 ? ` (the largest of ${number[i]})` : "";
    return `${label}: ${names[codes[i]]}, gate ${((scale * gate[i]) / 255).toFixed(2)}${of}${likely && `, second choice${likely}`}`;
  }

  chance(i) {
    if (!this.odds) return [];
    if (!this.odds[i]) return ["prompt"];
    const [own, ...others] = this.odds[i];
    const pair = (k) => [k ? ", " : "instead: ", ...this.nameOf(others[k]), ` ${percent(others[k + 1])}`];
    return [`probability ${percent(own)}`, others.flatMap((_, k) => (k % 2 ? [] : pair(k)))];
  }
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".coloured").forEach((root) => new ColouredText(root));
});
