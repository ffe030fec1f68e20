// What is on screen as text: a line a bin and track, a column a sample.

import { baseline } from "./picture.js";
import { basesOf } from "./places.js";

/** Table of values as they are drawn: of a bin's rows, in steps of the track's scale. */
export function table(page, contig, parts) {
  const { facts, settings, rows } = page;
  const order = [...rows.order];
  const head = ["contig", "start", "end", "track", ...order.map((line) => facts.lines[line])];
  const lines = [head.map(quoted).join("\t")];
  for (const { track, columns, values } of parts) {
    const zeros = settings.show === "difference"
      ? baseline(columns, values, page.base())
      : new Float64Array(columns.bins.length);
    columns.bins.forEach(({ piece, bin }, k) => {
      const bases = basesOf(facts, columns.pieces[piece], bin);
      const found = order.map((line) => {
        const value = values[columns.codes[k * columns.lines + line]] - zeros[k];
        return Number.isNaN(value) ? "NaN" : String(Number(value.toPrecision(6)));
      });
      lines.push([quoted(contig), ...bases, quoted(facts.tracks[track].name), ...found].join("\t"));
    });
  }
  return `${lines.join("\n")}\n`;
}

function quoted(text) {
  return /[\t\n\r"]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
