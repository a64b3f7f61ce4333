// SentencePiece's unigram model, to the token: what the model was trained with, without WebAssembly.
//
// It reads `vocabulary.model` itself: pieces with scores and types, the normaliser's table (a
// double-array trie over UTF-8 bytes, then strings that end with 0), and its switches. Control
// tokens are no pieces that a text can have, whatever it holds.

const NORMAL = 1, UNKNOWN = 2, USER_DEFINED = 4, BYTE = 6;
const SPACE = "\u2581";
// What a character without a piece costs, beside the least likely piece.
const UNKNOWN_PENALTY = 10;

export class Tokenizer {
  /** @param {Uint8Array} file a model of SentencePiece */
  constructor(file) {
    this.pieces = [];
    this.types = [];
    const scores = [];
    this.byteFallback = false;
    this.options = { prefix: true, trim: true };
    let table = new Uint8Array(0);
    for (const [number, value] of fields(file)) {
      if (number === 1) {
        let type = NORMAL, score = 0;
        for (const [part, own] of fields(value)) {
          if (part === 1) this.pieces.push(new TextDecoder().decode(own));
          else if (part === 2) score = new DataView(own.buffer, own.byteOffset).getFloat32(0, true);
          else if (part === 3) type = own;
        }
        scores.push(score);
        this.types.push(type);
      } else if (number === 2) {
        for (const [part, own] of fields(value)) if (part === 35) this.byteFallback = own > 0;
      } else if (number === 3) {
        for (const [part, own] of fields(value)) {
          if (part === 2) table = own;
          else if (part === 3) this.options.prefix = own > 0;
          else if (part === 4) this.options.trim = own > 0;
        }
      }
    }
    this.unknown = this.types.indexOf(UNKNOWN);
    this.scores = Float32Array.from(scores);
    this.trie = new Map();
    this.bytes = new Map();
    let least = Infinity;
    this.types.forEach((type, id) => {
      if (type === NORMAL || type === USER_DEFINED) {
        let node = this.trie;
        for (const character of this.pieces[id]) {
          if (!node.has(character)) node.set(character, new Map());
          node = node.get(character);
        }
        node.id = id;
      }
      if (type === NORMAL) least = Math.min(least, this.scores[id]);
      if (type === BYTE) this.bytes.set(parseInt(this.pieces[id].slice(3, 5), 16), id);
    });
    this.unknownScore = Math.fround(least - UNKNOWN_PENALTY);
    this.normalized = charsmap(table);
  }

  encode(text) {
    const characters = [...this.normalize(text)];
    const best = characters.map(() => ({ score: -Infinity, start: -1, id: -1 }));
    best.push({ score: -Infinity, start: -1, id: -1 });
    best[0].score = 0;
    for (let start = 0; start < characters.length; start++) {
      let node = this.trie, single = false;
      const till = best[start].score;
      for (let end = start; end < characters.length; end++) {
        node = node.get(characters[end]);
        if (node === undefined) break;
        if (node.id === undefined) continue;
        single ||= end === start;
        better(best[end + 1], Math.fround(till + this.scores[node.id]), start, node.id);
      }
      if (!single) {
        better(best[start + 1], Math.fround(till + this.unknownScore), start, this.unknown);
      }
    }
    const found = [];
    for (let end = characters.length; end > 0; end = best[end].start) {
      const { id, start } = best[end];
      if (id !== this.unknown) found.push(id);
      else if (this.byteFallback) {
        const bytes = new TextEncoder().encode(characters.slice(start, end).join(""));
        found.push(...[...bytes].reverse().map((byte) => this.bytes.get(byte)));
      } else if (found.at(-1) !== this.unknown) found.push(this.unknown);
    }
    return found.reverse();
  }

  decode(ids) {
    const parts = [];
    const encoder = new TextEncoder();
    for (const id of ids) {
      if (this.types[id] === BYTE) parts.push(parseInt(this.pieces[id].slice(3, 5), 16));
      else if (this.types[id] === NORMAL) parts.push(...encoder.encode(this.pieces[id]));
    }
    const text = new TextDecoder().decode(Uint8Array.from(parts)).replaceAll(SPACE, " ");
    return text.startsWith(" ") ? text.slice(1) : text;
  }

  normalize(text) {
    const { prefix, trim } = this.options;
    const bytes = new TextEncoder().encode(text);
    let place = 0;
    if (trim) {
      while (place < bytes.length) {
        const [chunk, length] = this.normalized(bytes, place);
        if (chunk !== " ") break;
        place += length;
      }
    }
    if (place === bytes.length) return "";
    let result = prefix ? SPACE : "", afterSpace = trim;
    while (place < bytes.length) {
      let [chunk, length] = this.normalized(bytes, place);
      place += length;
      while (afterSpace && chunk.startsWith(" ")) chunk = chunk.slice(1);
      if (chunk) {
        result += chunk.replaceAll(" ", SPACE);
        afterSpace = trim && chunk.endsWith(" ");
      }
    }
    if (trim) while (result.endsWith(SPACE)) result = result.slice(0, -1);
    return result;
  }
}

// Fields of a message of protocol buffers: [number, bytes or a whole number].
function* fields(bytes) {
  let place = 0;
  const varint = () => {
    let found = 0, scale = 1, byte;
    do {
      byte = bytes[place++];
      found += (byte & 127) * scale;
      scale *= 128;
    } while (byte > 127);
    return found;
  };
  while (place < bytes.length) {
    const key = varint();
    if ((key & 7) === 0) yield [key >>> 3, varint()];
    else {
      const length = { 1: () => 8, 2: varint, 5: () => 4 }[key & 7]();
      yield [key >>> 3, bytes.subarray(place, place + length)];
      place += length;
    }
  }
}

function better(node, score, start, id) {
  if (node.start === -1 || score > node.score) Object.assign(node, { score, start, id });
}

// A function from bytes and a place to [what stands there after normalisation, bytes it took].
function charsmap(blob) {
  const view = new DataView(blob.buffer, blob.byteOffset);
  const size = blob.length ? view.getUint32(0, true) : 0;
  const unit = (place) => view.getUint32(4 + 4 * place, true);
  const offset = (value) => (value >>> 10) << ((value & 512) >>> 6);
  const decoder = new TextDecoder();
  const strings = 4 + size;

  return (bytes, start) => {
    let length = 0, value = -1;
    if (size) {
      let node = offset(unit(0));
      for (let place = start; place < bytes.length; place++) {
        node ^= bytes[place];
        if (4 * node >= size) break;
        const found = unit(node);
        if ((found & 0x800000ff) !== bytes[place]) break;
        node ^= offset(found);
        if ((found >>> 8) & 1) {
          value = unit(node) & 0x7fffffff;
          length = place + 1 - start;
        }
      }
    }
    if (length) {
      let end = strings + value;
      while (blob[end]) end++;
      return [decoder.decode(blob.subarray(strings + value, end)), length];
    }
    const first = bytes[start];
    if (first < 0x80) return [String.fromCharCode(first), 1];
    length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    return [decoder.decode(bytes.subarray(start, start + length)), length];
  };
}
