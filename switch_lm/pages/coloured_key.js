// The key of a coloured text: which experts are shown, of one layer or of all at once; and the button that copies it.

class Key {
  // A view of all layers at once, which comes first and is shown unless another one is chosen.
  addAll(layers) {
    const key = `Stripes, from the top: ${layers.map(({ label }) => label).join(", ")}. Experts with the share of the text`;
    const input = make("input", { type: "radio", name: `${this.box.parentElement.id}-view`, value: this.views.length });
    this.views.push({ label: "all layers", palette: "expert", layers, key });
    this.part("views").querySelector("legend").after(make("label", {}, input, "all layers"));
    input.checked = !this.part("views").querySelector(":checked");
  }

  colourOf(code, { palette, none } = this.view) {
    return `${palette}-${code === none ? "none" : code % NUM_COLOURS}`;
  }

  // An expert of one layer alone, or beside those that are shown alone already; nobody: all again.
  showOnly(name) {
    if (!name) this.only.clear();
    else this.only.delete(name) || this.only.add(name);
    for (const button of this.part("key").querySelectorAll("button"))
      button.setAttribute("aria-pressed", this.only.has(button.dataset.name));
    this.colour();
  }

  isShown(code, name) {
    return code !== NOBODY && (this.only.size === 0 || this.only.has(name));
  }

  showKey() {
    const { box, layers, view } = this;
    const one = view.palette === "expert" ? "an expert" : "a class";
    this.part("key-name").textContent = `${view.key}. Click ${one} to isolate it; Escape shows all again.`;
    const name = ({ label }) => (view.layers ? [make("b", {}, label)] : []);
    this.part("key").replaceChildren(...layers.map((layer, n) => make("div", {}, ...name(layer), ...this.buttons(layer, n))));
    box.dataset.digits = view.layers ? 1 : Math.max(...view.marks.map((mark) => mark.length));
    box.parentElement.classList.toggle("striped", view.layers !== undefined);
    box.style.setProperty("--layers", layers.length);
  }

  buttons({ label, palette, names, none, marks, shown, codes }, n) {
    let [counts, counted] = [new Array(names.length).fill(0), 0];
    for (const code of codes) if (code !== NOBODY) counts[code]++, counted++;
    return shown.map((code) => {
      const [name, part] = [names[code], counts[code] / Math.max(1, counted)];
      const share = make("span", { className: "share" }, part < 0.01 ? percent(part) : `${Math.round(100 * part)}%`);
      const mark = make("span", { className: `mark ${this.colourOf(code, { palette, none })}` }, marks[code]);
      const button = make("button", { type: "button" }, mark, ` ${palette === "odds" || code === none ? name : ""} `, share);
      button.setAttribute("aria-label", `Show only ${this.view.layers ? `${label}, ` : ""}${name}, ${share.textContent}`);
      button.setAttribute("aria-pressed", "false");
      button.dataset.name = `${n}:${code}`;
      button.addEventListener("click", () => this.showOnly(button.dataset.name));
      return button;
    });
  }

  // A stripe for each layer below one character.
  stripe(cell, i) {
    for (const old of cell.querySelectorAll("i")) old.remove();
    this.layers.forEach((layer, n) => {
      const code = layer.codes[i];
      const mark = make("i", { className: this.isShown(code, `${n}:${code}`) ? this.colourOf(code, layer) : "" });
      mark.style.setProperty("--n", n);
      cell.append(mark);
    });
  }

  // By selecting it, which needs no permission; navigator.clipboard is missing where a page is not served securely.
  copy(button) {
    const box = make("textarea", { value: this.letters.join("") });
    button.after(box);
    box.select();
    button.textContent = document.execCommand("copy") ? "Copied" : "Not allowed here";
    box.remove();
    button.focus();
    setTimeout(() => (button.textContent = "Copy the text"), 2000);
  }
}
