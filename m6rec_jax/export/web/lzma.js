// Decompresses LZMA, which makes WebAssembly a third smaller than gzip does; browsers have no other.
//
// Of the format `lzma.FORMAT_ALONE` of Python, with the size in its header: a byte of properties,
// four of the dictionary's size, eight of the size, then bits of a range coder.

const STATES = 12, POSITIONS = 16, LENGTHS = 2 + 2 * POSITIONS * 8 + 256;
const MATCH = 0, REPEATED = MATCH + STATES * POSITIONS;
const REPEATED_0 = REPEATED + STATES, REPEATED_1 = REPEATED_0 + STATES;
const REPEATED_2 = REPEATED_1 + STATES, LONG_0 = REPEATED_2 + STATES;
const SLOTS = LONG_0 + STATES * POSITIONS, SPECIAL = SLOTS + 4 * 64, ALIGN = SPECIAL + 128;
const LENGTH = ALIGN + 16, REPEATED_LENGTH = LENGTH + LENGTHS, LITERALS = REPEATED_LENGTH + LENGTHS;

/** @param {Uint8Array} input @returns {Uint8Array} */
export function unlzma(input) {
  const view = new DataView(input.buffer, input.byteOffset);
  const contextBits = input[0] % 9, rest = Math.floor(input[0] / 9);
  const literalMask = (1 << rest % 5) - 1, positionMask = (1 << Math.floor(rest / 5)) - 1;
  const output = new Uint8Array(Number(view.getBigUint64(5, true)));
  const probabilities = new Uint16Array(LITERALS + (0x300 << (contextBits + (rest % 5)))).fill(1024);
  let place = 18, code = view.getUint32(14), range = 0xffffffff;

  function bit(index) {
    const probability = probabilities[index], bound = (range >>> 11) * probability;
    let found = 0;
    if (code < bound) {
      range = bound;
      probabilities[index] = probability + ((2048 - probability) >>> 5);
    } else {
      range -= bound;
      code -= bound;
      probabilities[index] = probability - (probability >>> 5);
      found = 1;
    }
    if (range < 0x1000000) {
      range = (range << 8) >>> 0;
      code = ((code << 8) | input[place++]) >>> 0;
    }
    return found;
  }

  function tree(start, bits) {
    let node = 1;
    for (let i = 0; i < bits; i++) node = (node << 1) | bit(start + node);
    return node - (1 << bits);
  }

  function reversed(start, bits) {
    let node = 1, found = 0;
    for (let i = 0; i < bits; i++) {
      const one = bit(start + node);
      node = (node << 1) | one;
      found |= one << i;
    }
    return found;
  }

  function direct(bits) {
    let found = 0;
    for (let i = 0; i < bits; i++) {
      range >>>= 1;
      const one = code >= range ? 1 : 0;
      if (one) code -= range;
      found = (found << 1) | one;
      if (range < 0x1000000) {
        range = (range << 8) >>> 0;
        code = ((code << 8) | input[place++]) >>> 0;
      }
    }
    return found;
  }

  function length(start, position) {
    if (!bit(start)) return 2 + tree(start + 2 + position * 8, 3);
    if (!bit(start + 1)) return 10 + tree(start + 2 + (POSITIONS + position) * 8, 3);
    return 18 + tree(start + 2 + 2 * POSITIONS * 8, 8);
  }

  function distance(long) {
    const slot = tree(SLOTS + Math.min(long - 2, 3) * 64, 6);
    if (slot < 4) return slot;
    const bits = (slot >>> 1) - 1, base = (2 | (slot & 1)) << bits;
    if (slot < 14) return base + reversed(SPECIAL + base - slot, bits);
    return base + direct(bits - 4) * 16 + reversed(ALIGN, 4);
  }

  let state = 0, at = 0, last = [0, 0, 0, 0];
  while (at < output.length) {
    const position = at & positionMask;
    if (!bit(MATCH + state * POSITIONS + position)) {
      const before = at ? output[at - 1] : 0;
      const context = ((at & literalMask) << contextBits) + (before >>> (8 - contextBits));
      const start = LITERALS + 0x300 * context;
      let symbol = 1;
      if (state >= 7) {
        let matched = output[at - last[0] - 1];
        while (symbol < 0x100) {
          const expected = (matched >>> 7) & 1;
          matched <<= 1;
          const found = bit(start + ((1 + expected) << 8) + symbol);
          symbol = (symbol << 1) | found;
          if (found !== expected) break;
        }
      }
      while (symbol < 0x100) symbol = (symbol << 1) | bit(start + symbol);
      output[at++] = symbol;
      state = state < 4 ? 0 : state < 10 ? state - 3 : state - 6;
      continue;
    }
    let long = 0;
    if (!bit(REPEATED + state)) {
      long = length(LENGTH, position);
      state = state < 7 ? 7 : 10;
      last = [distance(long), last[0], last[1], last[2]];
    } else {
      if (!bit(REPEATED_0 + state)) {
        if (!bit(LONG_0 + state * POSITIONS + position)) long = 1;
      } else if (!bit(REPEATED_1 + state)) last = [last[1], last[0], last[2], last[3]];
      else if (!bit(REPEATED_2 + state)) last = [last[2], last[0], last[1], last[3]];
      else last = [last[3], last[0], last[1], last[2]];
      if (long) state = state < 7 ? 9 : 11;
      else {
        long = length(REPEATED_LENGTH, position);
        state = state < 7 ? 8 : 11;
      }
    }
    const end = Math.min(at + long, output.length);
    for (let from = at - last[0] - 1; at < end; ) output[at++] = output[from++];
  }
  return output;
}
