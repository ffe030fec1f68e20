// Which line of the picture shows which samples: order, groups, heights.

export const GAP = 4; // pixels above a group
export const MEAN = 10; // pixels of a group's mean
const TALLEST = 32;

/**
 * Spans of the picture, from top to bottom, each of samples that follow each other in `order`.
 *
 * @param order numbers of all samples, group by group
 * @param groups [{ name, count }], or none
 * @param height pixels of a row, or "fit"
 * @param room pixels of the viewport
 */
export function makeLayout(order, groups, height, room) {
  const parts = groups.length ? groups : [{ name: "", count: order.length }];
  const banded = groups.length > 0;
  const rest = room - (banded ? parts.length * (GAP + MEAN) : 0);
  const spans = [];
  let top = 0;
  let first = 0;
  for (const { name, count } of parts) {
    if (banded) {
      spans.push({ kind: "mean", name, top: top + GAP, height: MEAN, first, count });
      top += GAP + MEAN;
    }
    const tall = rowsHeight(height, count, order.length, rest);
    spans.push({ kind: "rows", name, top, height: tall, first, count });
    top += tall;
    first += count;
  }
  return { order, spans, height: top, banded };
}

function rowsHeight(height, count, all, rest) {
  if (height !== "fit") return count * Number(height);
  const each = Math.min(rest / all, TALLEST);
  // Rows of 3 pixels and more are all of one height.
  return Math.max(Math.round((each < 3 ? each : Math.floor(each)) * count), 1);
}

/** Samples in a line of pixels, as places [first, last) in the order; nothing between groups. */
export function linesAt(layout, y) {
  const span = layout.spans.find(({ top, height }) => y >= top && y < top + height);
  if (!span) return undefined;
  if (span.kind === "mean") return { span, first: span.first, last: span.first + span.count };
  const place = (y - span.top) / span.height;
  const first = Math.floor(place * span.count + 1e-9);
  const next = Math.floor(((y - span.top + 1) / span.height) * span.count + 1e-9);
  return { span, first: span.first + first, last: span.first + Math.max(next, first + 1) };
}

/** Top and height of a sample's row, given its place in the order. */
export function rowOf(layout, place) {
  const span = layout.spans.find(({ kind, first, count }) =>
    kind === "rows" && place >= first && place < first + count);
  const height = span.height / span.count;
  return { top: span.top + (place - span.first) * height, height };
}

/** Order of samples by a column: numbers by size, else as words; what is empty last. */
export function byColumn(values) {
  const numbers = values.map((text) => (text.trim() === "" ? NaN : Number(text)));
  const numeric = values.every((text, k) => text.trim() === "" || !Number.isNaN(numbers[k]));
  const words = new Intl.Collator(undefined, { numeric: true });
  return sorted(values.length, (a, b) => {
    const [x, y] = [values[a], values[b]];
    if ((x === "") !== (y === "")) return x === "" ? 1 : -1;
    return numeric ? (numbers[a] - numbers[b] || 0) : words.compare(x, y);
  });
}

/** Order by numbers, the largest first, what is missing last. */
export function byValue(numbers) {
  return sorted(numbers.length, (a, b) => {
    const [x, y] = [numbers[a], numbers[b]];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return y - x;
  });
}

function sorted(count, compare) {
  return Uint32Array.from({ length: count }, (_, k) => k).sort((a, b) => compare(a, b) || a - b);
}

/** An order with the groups of a column one after the other, and the groups. */
export function grouped(order, values) {
  if (!values) return { order, groups: [] };
  const ranks = byColumn(values);
  const names = [...new Set(Array.from(ranks, (k) => values[k]))];
  const members = new Map(names.map((name) => [name, []]));
  for (const line of order) members.get(values[line]).push(line);
  const groups = names.map((name) => ({ name: name || "(none)", count: members.get(name).length }));
  return { order: Uint32Array.from(names.flatMap((name) => members.get(name))), groups };
}
