// The track: one line of pixels a sample, or a sample in several lines, drawn by igv.js's rules.

import igv from "./igv.esm.min.js";
import { bounds, palette, span } from "./colors.js";
import { linesAt, makeLayout, rowOf } from "./layout.js";
import { Columns, baseline, paint, valuesOf } from "./picture.js";
import { basesOf, binsWithin, levelFor, rowAt } from "./places.js";
import { ask } from "./server.js";

const STATISTICS = ["mean", "max"];
const LEAST_NAME = 8; // pixels of a row that has its name written
const FOUND = "#b3261e"; // samples that were looked for
// Codes of one picture at a time, so that drawing leaves no garbage of megabytes.
const scratch = { bytes: new Uint8Array(0) };
const GROUP_COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];

export class HeatMap extends igv.TrackBase {
  static defaults = { supportHiDPI: false, resolutionAware: true, height: 400 };

  init(config) {
    super.init(config);
    this.page = config._page;
    this.number = config._number;
    this.values = valuesOf(this.page.facts.tracks[this.number]);
    this.type = "heatmap";
    this.maxHeight = 1e5;
    this.resolutionAware = true;
  }

  get settings() {
    return this.page.settings;
  }

  get statistic() {
    return STATISTICS.indexOf(this.settings.statistic);
  }

  // igv.js keeps what it has loaded while this does not change.
  get windowFunction() {
    const frame = this.browser.referenceFrameList?.[0];
    return `${this.settings.statistic} ${frame ? levelFor(this.page.facts, frame.bpPerPixel) : ""}`;
  }

  get supportsWholeGenome() {
    return false;
  }

  hasSamples() {
    return true;
  }

  // Names and groups are drawn here, as rows may be less than a pixel high.
  getSamples() {
    const names = this.trackView.sampleNameViewport;
    names.draw = ({ context }) => this.drawNames(context, names.contentTop);
    return { names: [" "], height: 1, yOffset: 0, groups: new Map() };
  }

  layout() {
    const { order, groups } = this.page.rows;
    const room = this.trackView?.track.height ?? this.height;
    const key = `${this.settings.height} ${room}`;
    if (this.made?.key !== key || this.made.order !== order) {
      this.made = { key, order, layout: makeLayout(order, groups, this.settings.height, room) };
    }
    return this.made.layout;
  }

  computePixelHeight() {
    return this.layout().height;
  }

  async getFeatures(contig, start, end, bpPerPixel) {
    const { facts, places, tiles } = this.page;
    const pieces = binsWithin(facts, places.get(contig), start, end, levelFor(facts, bpPerPixel));
    try {
      await Promise.all(pieces.map(async (piece) => {
        const { place, level, first, last } = piece;
        piece.tiles = await tiles.load(this.number, this.statistic, level, place.number, first, last);
      }));
    } catch (error) {
      this.page.tell(error.message, true);
      return { length: 1, pieces: [] };
    }
    return { length: 1, pieces, contig };
  }

  /** Scale and differences of some columns. */
  style(columns) {
    const { show, low, high } = this.settings;
    const highest = this.settings.statistic === "max";
    const colors = palette(this.settings.palette);
    if (show === "value") {
      const [from, to] = bounds(this.seen(columns).histogram(), this.values, low, high);
      return { values: this.values, highest, colors, low: from, high: to };
    }
    const zeros = baseline(columns, this.values, this.page.base());
    const most = span(this.differences(columns, zeros), low, high);
    return { values: this.values, zeros, highest, colors, low: -most, high: most };
  }

  /** Of the three screens that are drawn, the columns of the one that is seen. */
  seen(columns) {
    const frame = this.browser.referenceFrameList[0];
    const [start, end] = [frame.start, frame.end];
    const within = columns.bins.map(({ piece, bin }) => {
      const [a, b] = basesOf(this.page.facts, columns.pieces[piece], bin);
      return a < end && b > start;
    });
    const first = within.indexOf(true);
    if (first < 0) return columns;
    const last = within.lastIndexOf(true) + 1;
    const found = new Columns(columns.pieces, this.page.facts);
    found.bins = columns.bins.slice(first, last);
    found.codes = columns.codes.subarray(first * columns.lines, last * columns.lines);
    found.first = first;
    return found;
  }

  /** A sample of the differences in view. */
  differences(columns, zeros) {
    const found = [];
    const seen = this.seen(columns);
    const step = Math.max(Math.floor(seen.codes.length / 200_000), 1) | 1;
    for (let k = 0; k < seen.codes.length; k += step) {
      const zero = zeros[(seen.first ?? 0) + Math.floor(k / seen.lines)];
      const value = this.values[seen.codes[k]] - zero;
      if (!Number.isNaN(value)) found.push(value);
    }
    return found.length ? found : [0];
  }

  draw({ context, pixelTop, pixelWidth, pixelHeight, bpStart, bpPerPixel, features }) {
    const [width, height] = [Math.round(pixelWidth), Math.round(pixelHeight)];
    const columns = new Columns(features.pieces, this.page.facts, scratch)
      .atPixels(bpStart, bpPerPixel, width);
    const style = this.style(columns);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").putImageData(paint(columns, style, this.layout(), pixelTop, height), 0, 0);
    context.drawImage(canvas, 0, pixelTop);
    this.drawnStyle = style;
    this.page.drawn(this, style);
  }

  drawNames(context, contentTop) {
    const layout = this.layout();
    const width = this.browser.sampleNameViewportWidth;
    const bottom = this.height;
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, bottom);
    context.textBaseline = "middle";
    const seen = layout.spans.filter(({ top, height }) =>
      top + height > contentTop && top < contentTop + bottom);
    for (const one of seen) {
      if (one.kind === "mean") this.nameGroup(context, layout, one, contentTop, width);
      else this.nameRows(context, layout, one, contentTop, width, bottom);
    }
    this.markFound(context, layout, contentTop, width);
  }

  nameGroup(context, layout, mean, contentTop, width) {
    const number = layout.spans.filter(({ kind }) => kind === "mean").indexOf(mean);
    const rows = layout.spans[layout.spans.indexOf(mean) + 1];
    context.fillStyle = GROUP_COLORS[number % GROUP_COLORS.length];
    context.fillRect(0, mean.top - contentTop, 5, mean.height + rows.height);
    context.font = "600 10px sans-serif";
    context.fillText(`${mean.name} (${mean.count})`, 9, mean.top - contentTop + 5, width - 10);
  }

  nameRows(context, layout, rows, contentTop, width, bottom) {
    const height = rows.height / rows.count;
    if (height < LEAST_NAME) return;
    const first = Math.max(Math.floor((contentTop - rows.top) / height), 0);
    const last = Math.min(Math.ceil((contentTop + bottom - rows.top) / height), rows.count);
    const size = Math.min(height, 12);
    for (let k = first; k < last; k++) {
      const line = layout.order[rows.first + k];
      const isFound = this.page.found.includes(line);
      context.fillStyle = isFound ? FOUND : "#2b2f36";
      context.font = `${isFound ? "600 " : ""}${size}px sans-serif`;
      const name = this.page.facts.lines[line];
      const y = rows.top + (k + 0.5) * height - contentTop;
      context.fillText(name, 9, y + 0.5, width - 10);
    }
  }

  /** Marks of the samples that were looked for. */
  markFound(context, layout, contentTop, width) {
    let free = 0;
    const found = [...this.page.found].sort((a, b) =>
      this.page.rows.places[a] - this.page.rows.places[b]);
    for (const line of found) {
      const { top, height } = rowOf(layout, this.page.rows.places[line]);
      const y = top + height / 2 - contentTop;
      context.fillStyle = FOUND;
      context.beginPath();
      context.moveTo(0, y);
      context.lineTo(7, y - 4);
      context.lineTo(7, y + 4);
      context.fill();
      if (height < LEAST_NAME && y >= free) {
        context.font = "10px sans-serif";
        context.fillText(this.page.facts.lines[line], 9, y, width - 10);
        free = y + 11;
      }
    }
  }

  /** Sample, row and bases under the pointer. */
  under({ y, genomicLocation, referenceFrame }) {
    const { facts, places } = this.page;
    const layout = this.layout();
    const lines = linesAt(layout, Math.floor(y));
    const found = rowAt(facts, places.get(referenceFrame.chr), genomicLocation);
    if (!lines || !found) return undefined;
    const names = Array.from(layout.order.subarray(lines.first, lines.last), (k) => facts.lines[k]);
    const [start, end] = basesOf(facts, { place: found.place, level: 0 }, found.row);
    const place = `${referenceFrame.chr}:${(start + 1).toLocaleString("en")}-${end.toLocaleString("en")}`;
    return { ...found, lines, names, line: layout.order[lines.first], bases: place };
  }

  hoverText(click) {
    const found = this.under(click);
    if (!found) return this.page.tell("");
    const { lines, names, bases } = found;
    const who = lines.span.kind === "mean"
      ? `mean of ${lines.span.name} (${names.length})`
      : names.length > 3 ? `${names.slice(0, 2).join(", ")} and ${names.length - 2} more` : names.join(", ");
    return this.page.tell(`${who} · ${bases}`);
  }

  /** Stored values of the row that was clicked, exactly. */
  async popupData(click) {
    const found = this.under(click);
    if (!found) return [];
    const { facts, key } = this.page;
    this.page.clicked = { contig: click.referenceFrame.chr, base: Math.floor(click.genomicLocation) };
    const question = { map: key, line: found.line, interval: found.place.number, row: found.row };
    try {
      const values = await ask("values", question);
      return [
        { name: "Sample", value: escaped(facts.lines[found.line]) },
        { name: "Bases", value: escaped(found.bases) },
        ...facts.tracks.map(({ name }, k) => ({ name: escaped(name), value: values[k] ?? "missing" })),
        ...Object.entries(facts.columns).map(([name, rows]) => (
          { name: escaped(name), value: escaped(rows[found.line]) })),
      ];
    } catch (error) {
      this.page.tell(error.message, true);
      return [];
    }
  }

  contextMenuItemList(click) {
    const place = { contig: click.referenceFrame.chr, base: Math.floor(click.genomicLocation) };
    return [
      { label: "Sort rows by value here", click: () => this.page.sortAt(place) },
      { label: "Sort rows by similarity of this view", click: () => this.page.set({ sort: "cluster" }) },
    ];
  }

  menuItemList() {
    return [];
  }

  /** Scroll to a sample. */
  reveal(line) {
    const layout = this.layout();
    if (layout.height <= this.height) return;
    const { top } = rowOf(layout, this.page.rows.places[line]);
    const [viewport] = this.trackView.viewports;
    this.trackView.scrollByPixels(top - this.height / 2 - viewport.getContentTop());
  }
}

/** Text as HTML shows it: igv.js sets names as HTML. */
export function escaped(text) {
  return String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
}
