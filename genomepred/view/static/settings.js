// What is shown and how: one object, and its text in the page's address.

export const DEFAULTS = {
  map: "",
  locus: "",
  tracks: [0],
  show: "value",
  base: "",
  statistic: "mean",
  palette: "viridis",
  low: undefined,
  high: undefined,
  height: "fit",
  sort: "file",
  group: "",
  find: "",
};

const SESSION = "genomepred view session 1";

/** Settings of an address's fragment; what it does not say, or says wrongly, is as by default. */
export function readSettings(fragment) {
  const told = new URLSearchParams(fragment.replace(/^#/, ""));
  const settings = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) {
    if (!told.has(key)) continue;
    const text = told.get(key);
    if (key === "tracks") {
      const numbers = text.split(",").map(Number);
      if (numbers.every(Number.isInteger)) settings.tracks = numbers;
    } else if (key === "low" || key === "high") {
      if (text !== "" && Number.isFinite(Number(text))) settings[key] = Number(text);
    } else {
      settings[key] = text;
    }
  }
  return settings;
}

/** Text of a file that keeps the view of a map, for another day and another server. */
export function writeSession(title, settings) {
  return `${JSON.stringify({ format: SESSION, title, view: writeSettings(settings) }, undefined, 2)}\n`;
}

/** Title of the map and settings of such a text; an error if it is another. */
export function readSession(text) {
  let told;
  try {
    told = JSON.parse(text);
  } catch {
    told = undefined;
  }
  if (told?.format !== SESSION || typeof told.view !== "string") {
    throw new Error("this file is no session of genomepred view");
  }
  return { title: String(told.title), settings: readSettings(told.view) };
}

/** Fragment that reads back to the settings. */
export function writeSettings(settings) {
  const told = new URLSearchParams();
  for (const [key, usual] of Object.entries(DEFAULTS)) {
    const value = settings[key];
    if (value !== undefined && String(value) !== String(usual)) told.set(key, String(value));
  }
  return `#${told}`;
}
