// Tiles of a pyramid: distinct rows and who has which, expanded a column at a time.

import { askBytes } from "./server.js";

// Bytes of tiles that are kept beyond those on screen.
const KEPT = 8e6;

/** Codes of some consecutive bins of all lines. */
class Tile {
  constructor(buffer) {
    const [blocks, lines, bins] = new Uint32Array(buffer, 0, 3);
    this.lines = lines;
    this.bins = bins;
    this.size = buffer.byteLength;
    if (blocks === 0) {
      this.dense = new Uint8Array(buffer, 12);
      return;
    }
    const facts = new Uint32Array(buffer, 12, 3 * blocks);
    let at = 12 + 12 * blocks;
    this.blocks = [];
    for (let k = 0; k < blocks; k++) {
      const [distinct, width, entry] = facts.subarray(3 * k, 3 * k + 3);
      const index = entry === 1
        ? new Uint8Array(buffer, at, lines)
        : new Uint16Array(buffer.slice(at, at + 2 * lines));
      at += entry * lines;
      this.blocks.push({ index, width, codes: new Uint8Array(buffer, at, distinct * width) });
      at += distinct * width;
    }
    this.each = this.blocks[0].width; // only an interval's last block may be narrower
  }

  /** Write the codes of all lines in a bin to `out` from `at` on. */
  column(bin, out, at) {
    if (this.dense) {
      out.set(this.dense.subarray(bin * this.lines, (bin + 1) * this.lines), at);
      return;
    }
    const { index, width, codes } = this.blocks[Math.floor(bin / this.each)];
    const place = bin % this.each;
    for (let line = 0; line < this.lines; line++) out[at + line] = codes[index[line] * width + place];
  }
}

/** Tiles of a map, loaded when they are asked for; the oldest go when there are many. */
export class Tiles {
  constructor(map, facts) {
    this.map = map;
    this.facts = facts;
    this.kept = new Map();
    this.size = 0;
  }

  /** Tiles with bins [first, last) of a level of an interval, by their numbers. */
  async load(track, stat, level, interval, first, last) {
    const { tile } = this.facts;
    const found = new Map();
    const loads = [];
    for (let number = Math.floor(first / tile); number * tile < last; number++) {
      const key = [track, stat, level, interval, number].join();
      loads.push(this.one(key, { track, stat, level, interval, tile: number })
        .then((one) => found.set(number, one)));
    }
    await Promise.all(loads);
    return found;
  }

  one(key, parameters) {
    let coming = this.kept.get(key);
    this.kept.delete(key);
    if (!coming) {
      coming = askBytes("tile", { map: this.map, ...parameters }).then((buffer) => {
        const tile = new Tile(buffer);
        this.size += tile.size;
        coming.size = tile.size;
        this.trim();
        return tile;
      });
      coming.catch(() => this.kept.delete(key));
    }
    this.kept.set(key, coming);
    return coming;
  }

  trim() {
    for (const [key, coming] of this.kept) {
      if (this.size <= KEPT) return;
      if (coming.size) {
        this.kept.delete(key);
        this.size -= coming.size;
      }
    }
  }
}
