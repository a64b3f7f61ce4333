// Text of requests, and their rows of tokens: as `DatasetTemplate`, `source_row` and `text_row` have
// them in Python.

/** A format string such as "{title}[ ({year})]"; a clause goes with its fields' values. */
export class Template {
  constructor(source) {
    let place = 0;
    const read = () => {
      const parts = [];
      let literal = "";
      const flush = () => {
        if (literal) parts.push(literal);
        literal = "";
      };
      while (place < source.length) {
        const character = source[place++];
        if (character === "\\") literal += source[place++];
        else if (character === "{") {
          flush();
          const end = source.indexOf("}", place);
          parts.push({ name: source.slice(place, end) });
          place = end + 1;
        } else if (character === "[") {
          flush();
          parts.push({ parts: read() });
        } else if (character === "]") break;
        else literal += character;
      }
      flush();
      return parts;
    };
    this.parts = read();
  }

  /** The text; null where a field outside of all clauses has no value. */
  render(values) {
    let found = "";
    for (const part of this.parts) {
      const text = rendered(part, values);
      if (part.name && !text) return null;
      found += text;
    }
    return found;
  }
}

// As `text.format_strings`: a model gets no token of it.
const SILENT =
  /^[\s\x01-\x08\x0e-\x1f\x7f\x85\x8f\x9f\u061c\u200b\u200c\u200e\u200f\u2581\ufeff\ufffd]*$/;

function rendered(part, values) {
  if (typeof part === "string") return part;
  if (part.name) {
    const text = String(values[part.name] ?? "");
    return SILENT.test(text) ? "" : text;
  }
  let found = "", hasContent = false;
  for (const own of part.parts) {
    const text = rendered(own, values);
    if (own.name && !text) return "";
    hasContent ||= typeof own !== "string" && text !== "";
    found += text;
  }
  return hasContent ? found : "";
}

/** What there is to say of somebody by the values of what was seen; see `Statistics.user_features`. */
function userFeatures(values, { smoothing, share, mean, spread, at_least }) {
  const count = values.length;
  if (!count) return {};
  const smoothed = (amount, towards) => (amount + smoothing * towards) / (count + smoothing);
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
  const found = { user_count: String(count) };
  if (share !== null) {
    const liked = values.filter((value) => at_least === null || value >= at_least).length;
    const percent = Math.min(1, Math.max(0, smoothed(liked, share))) * 100;
    found.user_positive_percent = String(Math.floor(Number(percent.toFixed(9)) + 0.5));
  }
  if (mean !== null) found.user_mean_value = inSteps(smoothed(sum(values), mean), spread);
  return found;
}

function inSteps(number, spread) {
  const exponent = Math.max(-9, even(Math.log10(spread)));
  const step = 10 ** (exponent - 1) / 2;
  return (even(number / step) * step + 0).toFixed(Math.max(0, 2 - exponent));
}

// Halves go to the even neighbour, as in Python.
function even(number) {
  const below = Math.floor(number);
  if (number - below !== 0.5) return Math.round(number);
  return below % 2 ? below + 1 : below;
}

const WEEKDAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = [
  "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
  "November", "December",
];

/** Fields of a context at a moment, a Date, in UTC. */
function moment(now) {
  const hour = now.getUTCHours();
  const month = MONTHS[now.getUTCMonth()];
  const part = [[5, "night"], [12, "morning"], [17, "afternoon"], [22, "evening"]].find(
    ([end]) => hour < end,
  );
  return {
    date: `${now.getUTCDate()} ${month} ${now.getUTCFullYear()}`,
    weekday: WEEKDAYS[now.getUTCDay()],
    month,
    year: now.getUTCFullYear(),
    part_of_day: part ? part[1] : "night",
  };
}

/**
 * Profile, behaviours and context of a task, as `RequestRenderer` has them, and what is known of the
 * person, for candidates.
 *
 * @param {Object} task of `catalogue.json`
 * @param {string[]} events of the task's data set, a format string for each item
 * @param {Object[]} picks `item`, a place in the catalogue, or `title`; `reaction`
 * @param {Object} profile values by name
 * @param {Date} now
 */
export function renderHistory(task, events, picks, profile, now) {
  const { statistics } = task;
  const values = picks.map(({ reaction }) => reaction.value);
  // Where events have values, those without one do not count.
  const counted = values.filter((value) => value !== null || statistics?.mean === null);
  const features = statistics ? userFeatures(counted, statistics) : {};
  const person = { ...profile, ...features };
  const latest = task.max_events === null ? picks : picks.slice(-task.max_events);
  const behaviours = latest.map(({ item, title, reaction }) => {
    const event = new Template(item === undefined ? task.event : events[item]);
    return event.render({ title, outcome: reaction.text, ago: "just now" }) ?? "";
  });
  const context = new Template(task.context).render({ ...moment(now), ...features }) ?? "";
  const about = new Template(task.profile).render(person) ?? "";
  return { segments: [about, ...behaviours.filter(Boolean), context], person };
}

/** Tokens and block ids of a history: [BOS'] profile | behaviour | ... | context [EOS']. */
export function sourceRow(segments, special, limit) {
  const kept = segments.map((segment) => [...segment]);
  const total = () => kept.reduce((sum, segment) => sum + segment.length, 0);
  while (kept.length > 3 && total() > limit - 2) kept.splice(1, 1);
  while (total() > limit - 2) {
    let longest = 0;
    kept.forEach((segment, place) => {
      if (segment.length >= kept[longest].length) longest = place;
    });
    kept[longest].pop();
  }
  const tokens = [special[0], ...(kept[0] ?? [])];
  const blocks = tokens.map(() => 1);
  for (const segment of kept.slice(1)) {
    if (!segment.length) continue;
    const block = blocks.at(-1) + 1;
    tokens.push(...segment);
    blocks.push(...segment.map(() => block));
  }
  return { tokens: [...tokens, special[1]], blocks: [...blocks, blocks.at(-1) + 1] };
}

/** Tokens and block ids of a candidate: [BOS] words [EOS]. */
export function textRow(pieces, special, limit) {
  const tokens = [special[2], ...pieces.slice(0, limit - 2), special[3]];
  return { tokens, blocks: tokens.map(() => 1) };
}
