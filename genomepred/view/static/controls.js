// The bar above the picture: what it shows of the settings, and what changes them.

import { DIVERGING, SEQUENTIAL } from "./colors.js";

const byId = (id) => document.getElementById(id);
const SIMPLE = ["show", "base", "statistic", "palette", "height", "sort", "group"];

/** Fill the bar for a map. */
export function fillBar(page, maps) {
  const { facts } = page;
  byId("title").textContent = facts.title;
  byId("title").title = `${facts.title}: ${facts.lines.length.toLocaleString("en")} rows`;
  byId("map-field").hidden = maps.length < 2;
  choices(byId("map"), maps.map(({ key, title }) => [key, title]));
  choices(byId("base"), bases(facts));
  choices(byId("sort"), [
    ["file", "order of the file"], ["name", "name"], ["value", "value at center"],
    ["cluster", "similarity here"],
    ...Object.keys(facts.columns).map((name) => [`column:${name}`, name]),
  ]);
  choices(byId("group"), [["", "nothing"], ...Object.keys(facts.columns).map((name) => [name, name])]);
  byId("names").replaceChildren(...facts.lines.slice(0, 5000).map(option));
  fillTracks(facts);
}

function bases(facts) {
  const first = facts.reference === null ? [] : [[String(facts.reference), "the reference"]];
  const rest = facts.lines.map((name, k) => [String(k), name]).filter(([k]) => k !== first[0]?.[0]);
  return [...first, ["mean", "the mean of all"], ...rest];
}

function choices(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => {
    const choice = option(value);
    choice.textContent = text;
    return choice;
  }));
}

function option(value) {
  const choice = document.createElement("option");
  choice.value = value;
  return choice;
}

function fillTracks(facts) {
  byId("tracks").lastElementChild.replaceChildren(...facts.tracks.map(({ name, description }, k) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.value = String(k);
    label.append(box, name);
    label.title = description;
    return label;
  }));
}

/** Show the settings. */
export function showSettings({ settings, facts }) {
  choices(byId("palette"), (settings.show === "value" ? SEQUENTIAL : DIVERGING).map((p) => [p, p]));
  for (const id of SIMPLE) byId(id).value = settings[id];
  byId("base-field").hidden = settings.show === "value";
  byId("low").value = settings.low ?? "";
  byId("high").value = settings.high ?? "";
  byId("map").value = settings.map;
  byId("find").value = settings.find;
  const names = settings.tracks.map((k) => facts.tracks[k].name);
  byId("tracks").firstElementChild.textContent = names.join(", ");
  for (const box of byId("tracks").querySelectorAll("input")) {
    box.checked = settings.tracks.includes(Number(box.value));
  }
}

/** Tell `change` what the bar is set to, and `act` which button is pressed. */
export function listen(change, act) {
  for (const id of [...SIMPLE, "map"]) {
    byId(id).addEventListener("change", () => change({ [id]: byId(id).value }));
  }
  for (const id of ["low", "high"]) {
    byId(id).addEventListener("change", () => {
      const number = byId(id).valueAsNumber;
      change({ [id]: Number.isNaN(number) ? undefined : number });
    });
  }
  byId("find").addEventListener("input", () => change({ find: byId("find").value }));
  byId("tracks").addEventListener("change", () => {
    const boxes = [...byId("tracks").querySelectorAll("input:checked")];
    if (boxes.length) change({ tracks: boxes.map((box) => Number(box.value)) });
  });
  byId("open").addEventListener("click", () => byId("session").click());
  byId("session").addEventListener("change", () => act("session"));
  for (const id of ["link", "png", "svg", "tsv", "save", "help"]) {
    byId(id).addEventListener("click", () => act(id));
  }
  document.addEventListener("click", (event) => {
    if (!byId("tracks").contains(event.target)) byId("tracks").open = false;
  });
}

/** Keys of the page, but not while something is typed. */
export function listenToKeys(act) {
  const names = {
    "ArrowLeft": "left", "ArrowRight": "right", "ArrowUp": "up", "ArrowDown": "down", "+": "in",
    "=": "in", "-": "out", "Home": "home", "/": "place", "f": "find", "v": "value",
    "d": "difference", "m": "statistic", "c": "cluster", "s": "sort", "?": "help",
  };
  document.addEventListener("keydown", (event) => {
    const where = event.composedPath()[0];
    const typing = where instanceof HTMLElement && where.matches("input, select, textarea, summary");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !names[event.key]) return;
    event.preventDefault();
    act(names[event.key]);
  });
}

/** A line at the foot of the page. */
export function tell(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}
