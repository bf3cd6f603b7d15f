// The text so far, on the page and as files. Times are seconds since the recording began.

const LINE = 42;  // columns, of which a full-width character takes two
const LINES = 2;
const WIDE = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\u3000-\u303f\uff00-\uff60]/gu;
const LEADING_MARK = /^(?:[.,;:?!\u2026]+(?=\s|$)|[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]+)\s*/;

export class Transcript {
  cues = [];
  #list;
  #partial = null;
  #last = null;  // final text
  #changed;

  constructor(list, changed) {
    this.#list = list;
    this.#changed = changed;
  }

  /** Add final text; it takes the place of the partial text. */
  add({ start, end, text }) {
    this.setPartial(null);
    const mark = LEADING_MARK.exec(text ?? "")?.[0] ?? "";
    if (mark && this.#last) {  // it belongs behind the text before
      this.cues.at(-1).text += mark.trim();
      this.#last.lastChild.textContent += mark.trim();
      text = text.slice(mark.length);
      this.#changed();
    }
    if (!text) return;
    this.cues.push({ start, end, text });
    this.#last = this.#append(start, text, "final");
  }

  /** Show text that may still change, or none. */
  setPartial(record) {
    this.#partial?.remove();
    this.#partial = null;
    if (record?.text) {
      this.#partial = this.#append(record.start, record.text, "partial");
      this.#partial.setAttribute("aria-hidden", "true");  // a screen reader waits for the final words
    }
  }

  /** Say that sound has no text, and why. */
  addLoss(start, sentence) {
    this.setPartial(null);
    this.#append(start, sentence, "lost");
  }

  clear() {
    this.cues = [];
    this.#partial = this.#last = null;
    this.#list.replaceChildren();
    this.#changed();
  }

  get isEmpty() { return this.#list.childElementCount === 0; }

  #append(start, text, kind) {
    const paper = this.#list.parentElement;
    const atEnd = paper.scrollHeight - paper.scrollTop - paper.clientHeight < 80;
    const item = document.createElement("li");
    item.className = kind;
    const time = document.createElement("time");
    time.textContent = clock(start);
    const words = document.createElement("span");
    words.dir = "auto";  // Arabic and Hebrew run to the left
    words.textContent = text;
    item.append(time, words);
    this.#list.append(item);
    if (atEnd) paper.scrollTop = paper.scrollHeight;
    this.#changed();
    return item;
  }

  /** Return the text as `txt`, `srt`, `vtt` or `json`. */
  render(format) {
    if (format === "json") return JSON.stringify({ text: this.render("txt").trim(), segments: this.cues }, null, 2) + "\n";
    if (format === "txt") return this.cues.map((cue) => cue.text + "\n").join("");
    const mark = format === "vtt" ? "." : ",";
    const blocks = this.cues.flatMap(subtitles).map(({ start, end, lines }, number) => {
      const times = `${stamp(start, mark)} --> ${stamp(end, mark)}`;
      const shown = lines.join("\n").replaceAll("-->", "->");
      return format === "srt" ? `${number + 1}\n${times}\n${shown}\n` : `${times}\n${shown.replaceAll("&", "&amp;").replaceAll("<", "&lt;")}\n`;
    });
    return (format === "vtt" ? "WEBVTT\n\n" : "") + blocks.join("\n");
  }
}

/** Cut a cue into subtitles of at most two lines, which share its time by their length. */
function subtitles({ start, end, text }) {
  const lines = [""];
  for (const word of text.split(/(?<=\s)/).flatMap(pieces)) {
    if (lines.at(-1) && columns(lines.at(-1) + word.trimEnd()) > LINE) lines.push("");
    lines[lines.length - 1] += word;
  }
  const letters = lines.join("").length || 1;
  let at = start;
  const parts = [];
  for (let first = 0; first < lines.length; first += LINES) {
    const some = lines.slice(first, first + LINES).map((line) => line.trim());
    const until = at + ((end - start) * some.join("").length) / letters;
    parts.push({ start: at, end: until, lines: some });
    at = until;
  }
  return parts;
}

/** Return a word, or the words in it where a script has no spaces between them. */
function pieces(word) {
  if (columns(word.trimEnd()) <= LINE && !word.match(WIDE)) return [word];
  return [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(word)].map(({ segment }) => segment);
}

function columns(text) {
  return text.length + (text.match(WIDE)?.length ?? 0);
}

function stamp(seconds, mark) {
  const ms = Math.round(seconds * 1000);
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  return `${two(ms / 3600000)}:${two((ms / 60000) % 60)}:${two((ms / 1000) % 60)}${mark}${String(ms % 1000).padStart(3, "0")}`;
}

export function clock(seconds) {
  const whole = Math.floor(seconds);
  const minutes = Math.floor(whole / 60);
  const rest = String(whole % 60).padStart(2, "0");
  return minutes < 60 ? `${minutes}:${rest}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}
