// The scales of the tracks that are shown.

import { palette } from "./colors.js";

/** Show, or renew, the scale of a track. */
export function drawLegend(parent, name, low, high, colorsName) {
  let legend = [...parent.children].find((one) => one.dataset.name === name);
  if (!legend) {
    legend = document.createElement("span");
    legend.className = "legend";
    legend.dataset.name = name;
    const parts = ["b", "span", "canvas", "span", "i", "em"].map((tag) => document.createElement(tag));
    parts.at(-1).textContent = "missing";
    legend.append(...parts);
    parent.append(legend);
  }
  const [title, from, canvas, to] = legend.children;
  title.textContent = name;
  title.title = name;
  from.textContent = short(low);
  to.textContent = short(high);
  [canvas.width, canvas.height] = [256, 1];
  const image = new ImageData(new Uint8ClampedArray(palette(colorsName).buffer), 256, 1);
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Drop the scales of tracks that are shown no more. */
export function keepLegends(parent, names) {
  for (const legend of [...parent.children]) {
    if (!names.includes(legend.dataset.name)) legend.remove();
  }
}

/** A number in few letters. */
export function short(value) {
  if (!Number.isFinite(value)) return "";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}
