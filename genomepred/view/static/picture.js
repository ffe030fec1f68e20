// From codes to pixels: the same arithmetic for the screen, exports, orders and the table.

import { colorOf } from "./colors.js";
import { linesAt } from "./layout.js";

/** Codes of the bins of a view that pixels show, and which pixel shows which. */
export class Columns {
  /**
   * @param pieces as `binsWithin` gives them, each with its `tiles`
   * @param facts of the map
   * @param scratch { bytes } that may be written over, and made larger
   */
  constructor(pieces, facts, scratch) {
    this.pieces = pieces;
    this.facts = facts;
    this.scratch = scratch;
    this.lines = facts.lines.length;
  }

  /** Take the bins at the centers of `width` pixels from base `start` on. */
  atPixels(start, bpPerPixel, width) {
    this.column = new Int32Array(width).fill(-1);
    this.bins = [];
    let piece = 0;
    for (let x = 0; x < width; x++) {
      const base = start + (x + 0.5) * bpPerPixel;
      while (piece < this.pieces.length && base >= this.endOf(this.pieces[piece])) piece++;
      if (piece === this.pieces.length) break;
      const { place, level, first, last } = this.pieces[piece];
      const bin = Math.floor((base - place.origin) / this.facts.step / 2 ** level);
      if (base < 0 || base >= place.length || bin < first || bin >= last) continue;
      const seen = this.bins.at(-1);
      if (!seen || seen.bin !== bin || seen.piece !== piece) this.bins.push({ piece, bin });
      this.column[x] = this.bins.length - 1;
    }
    return this.fill();
  }

  /** Take all bins of the pieces. */
  all() {
    this.bins = this.pieces.flatMap(({ first, last }, piece) =>
      Array.from({ length: last - first }, (_, k) => ({ piece, bin: first + k })));
    return this.fill();
  }

  endOf({ place }) {
    return Math.min(place.origin + place.rows * this.facts.step, place.length);
  }

  /** Codes [bins, lines]. */
  fill() {
    const { tile } = this.facts;
    const size = this.bins.length * this.lines;
    if (this.scratch && this.scratch.bytes.length < size) this.scratch.bytes = new Uint8Array(size);
    this.codes = this.scratch?.bytes.subarray(0, size).fill(0) ?? new Uint8Array(size);
    this.bins.forEach(({ piece, bin }, k) => {
      const found = this.pieces[piece].tiles.get(Math.floor(bin / tile));
      found?.column(bin % tile, this.codes, k * this.lines);
    });
    return this;
  }

  /** How often each code occurs. */
  histogram() {
    const counts = new Float64Array(256);
    for (const code of this.codes) counts[code]++;
    return counts;
  }
}

/** Values of codes, NaN for missing ones and for those that do not occur. */
export function valuesOf(track) {
  const values = new Float64Array(256).fill(NaN);
  track.values.forEach((value, k) => { values[k + 1] = value; });
  return values;
}

/** What differences are to: for each bin the value of a line, or the mean of all. */
export function baseline(columns, values, base) {
  const { codes, lines } = columns;
  return Float64Array.from(columns.bins, (_, k) => {
    if (base !== "mean") return values[codes[k * lines + base]];
    return meanOf(codes.subarray(k * lines, (k + 1) * lines), values);
  });
}

function meanOf(codes, values) {
  let sum = 0;
  let count = 0;
  for (const code of codes) {
    if (code) {
      sum += values[code];
      count++;
    }
  }
  return count ? sum / count : NaN;
}

/**
 * Value of a bin over several lines: their mean; of the highest, the highest; of differences of the
 * highest, that furthest from 0. Missing ones do not count.
 */
function joined(columns, values, bin, order, first, last, zero, highest) {
  const { codes, lines } = columns;
  let sum = 0;
  let count = 0;
  let best = NaN;
  for (let k = first; k < last; k++) {
    const code = codes[bin * lines + order[k]];
    if (!code) continue;
    const value = values[code] - zero;
    sum += value;
    count++;
    if (!count || Number.isNaN(best) || further(value, best, zero)) best = value;
  }
  if (!count || Number.isNaN(zero)) return NaN;
  return highest ? best : sum / count;
}

function further(value, best, zero) {
  return zero === 0 ? value > best : Math.abs(value) > Math.abs(best);
}

/** Values of lines of pixels [top, top + height) for all bins, told to `draw(y, values)`. */
export function eachLine(columns, style, layout, top, height, draw) {
  const { values, zeros, highest } = style;
  let before;
  let line;
  for (let y = top; y < top + height; y++) {
    const found = linesAt(layout, y);
    if (!found) {
      draw(y, undefined);
      continue;
    }
    if (!before || before.first !== found.first || before.last !== found.last
      || before.span.kind !== found.span.kind) {
      const most = highest && found.span.kind !== "mean";
      line = Float64Array.from(columns.bins, (_, bin) => joined(
        columns, values, bin, layout.order, found.first, found.last, zeros ? zeros[bin] : 0, most));
    }
    before = found;
    draw(y, line);
  }
}

// Pixels of the picture before, written over by the next: freed ones would wait for the collector.
let memory = new ArrayBuffer(0);

/** Picture of a view as ImageData, which holds until the next. */
export function paint(columns, style, layout, top, height) {
  const width = columns.column.length;
  if (memory.byteLength < 4 * width * height) memory = new ArrayBuffer(4 * width * height);
  const pixels = new Uint32Array(memory, 0, width * height).fill(0xffffffff);
  const colors = new Uint32Array(columns.bins.length);
  let before;
  eachLine(columns, style, layout, top, height, (y, line) => {
    if (!line) return;
    if (line !== before) {
      for (let bin = 0; bin < colors.length; bin++) {
        colors[bin] = colorOf(line[bin], style.low, style.high, style.colors);
      }
      before = line;
    }
    const row = pixels.subarray((y - top) * width, (y - top + 1) * width);
    for (let x = 0; x < width; x++) {
      const bin = columns.column[x];
      if (bin >= 0) row[x] = colors[bin];
    }
  });
  return new ImageData(new Uint8ClampedArray(memory, 0, 4 * width * height), width, height);
}
