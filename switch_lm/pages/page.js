// Theme and sortable tables of every page; a page reads just as well without it.
"use strict";

// --- theme: as the system has it, dark or light ---

const THEMES = ["auto", "dark", "light"];
const NAMES = { auto: "Auto", dark: "Dark", light: "Light" };
const KEY = "switch_lm-theme";

// Where a browser keeps nothing for files, reading and writing throw.
function storedTheme() {
  try {
    const theme = localStorage.getItem(KEY);
    return THEMES.includes(theme) ? theme : "auto";
  } catch {
    return "auto";
  }
}

function storeTheme(theme) {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // then the choice lasts as long as the page
  }
}

function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  if (!button) return;
  button.hidden = false;
  button.textContent = NAMES[theme];
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  button.setAttribute("aria-label", `Theme: ${NAMES[theme]}. Switch to ${NAMES[next]}`);
  button.onclick = () => {
    storeTheme(next);
    showTheme(next);
  };
}

// --- tables ---

const BLANK = ["", "-", "–", "—"];
const NUMBER = /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i;

// A cell's number, else its text, else null.
function valueOf(cell) {
  if (cell.dataset.sort !== undefined) {
    const number = Number(cell.dataset.sort);
    return Number.isNaN(number) ? null : number;
  }
  const text = cell.textContent.trim();
  if (BLANK.includes(text)) return null;
  const plain = text.replaceAll(",", "").replace("−", "-").replace(/\s*%$/, "");
  return NUMBER.test(plain) ? Number(plain) : text;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a < b ? -1 : a > b ? 1 : 0;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b, undefined, { numeric: true, sensitivity: "base" });
}

// Equal rows keep their order, and blanks come last, upwards and downwards.
function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const keyed = Array.from(body.rows, (row) => ({ row, value: valueOf(row.cells[column]) }));
  keyed.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
    return direction * compare(a.value, b.value);
  });
  body.append(...keyed.map(({ row }) => row));
}

function makeSortable(table) {
  const headings = Array.from(table.tHead.rows[0].cells);
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const downwards = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", downwards ? "descending" : "ascending");
      sortBy(table, column, downwards ? -1 : 1);
    });
  });
}

showTheme(storedTheme()); // before the page is seen, so that it does not flash
document.addEventListener("DOMContentLoaded", () => {
  showTheme(storedTheme());
  document.querySelectorAll("table.sortable").forEach(makeSortable);
});
