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

/** Fragment that reads back to the settings. */
export function writeSettings(settings) {
  const told = new URLSearchParams();
  for (const [key, usual] of Object.entries(DEFAULTS)) {
    const value = settings[key];
    if (value !== undefined && String(value) !== String(usual)) told.set(key, String(value));
  }
  return `#${told}`;
}
