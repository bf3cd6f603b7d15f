// A recording: the microphone, the feed to the server, and what to do when the server goes away.

import { openFeed } from "./feeds.js";
import { openMicrophone } from "./microphone.js";
import { Unauthorized } from "./server.js";

const KEPT_SECONDS = 120;
const MOST_FAILURES = 5;
const RETRY_MS = 1000;

/** Sound is kept until its text is final, and sent again to a server that comes back. */
export class Recorder {
  seconds = 0;
  #server;
  #transcript;
  #view;
  #microphone = null;
  #feed = null;
  #heardUntil = 0;
  #kept = [];
  #failures = 0;
  #settled = () => {};

  /** `view` shows what happens: `recording(on)`, `level(peak)`, `trouble(sentence)` and `failed(error)`. */
  constructor(server, transcript, view) {
    this.#server = server;
    this.#transcript = transcript;
    this.#view = view;
  }

  get isRecording() { return this.#microphone !== null; }

  async start(options) {
    this.seconds = this.#heardUntil = this.#failures = 0;
    this.#kept = [];
    this.#microphone = await openMicrophone((pcm, peak) => this.#take(pcm, peak));
    this.options = { ...options, rate: this.#microphone.rate };
    this.#view.recording(true);
    this.#open();
  }

  /** Stop; resolves when the last words are there. */
  async stop() {
    const microphone = this.#microphone;
    this.#microphone = null;
    this.#view.recording(false);
    this.#view.level(0);
    await microphone.close();
    if (!this.#feed) return;
    const settled = new Promise((resolve) => { this.#settled = resolve; });
    this.#feed.finish();
    await settled;
  }

  #take(pcm, peak) {
    if (!this.isRecording) return;
    const start = this.seconds;
    this.seconds += pcm.byteLength / 2 / this.options.rate;
    this.#view.level(peak);
    this.#kept.push({ start, end: this.seconds, pcm });
    this.#feed?.send(pcm);
    if (this.seconds - this.#kept[0].start > KEPT_SECONDS) {
      this.#forget(this.#kept[0].end);
      if (this.#feed) this.#heardUntil = this.#kept[0].start;  // the server has it: nobody spoke
    }
  }

  #open() {
    const offset = this.#kept[0]?.start ?? this.seconds;
    if (this.#heardUntil < offset - 0.05) {
      const lost = Math.round(offset - this.#heardUntil);
      this.#transcript.addLoss(this.#heardUntil, `${lost} s have no text: the server was away for longer than the page keeps sound`);
    }
    const feed = openFeed(this.#server, this.options, (record) => this.#show(record, offset), (error) => this.#ended(feed, error));
    this.#feed = feed;
    for (const { pcm } of this.#kept) feed.send(pcm);
  }

  #show(record, offset) {
    this.#failures = 0;
    const heard = { ...record, start: record.start + offset, end: record.end + offset };
    if (!record.final) return this.#transcript.setPartial(heard);
    this.#transcript.add(heard);
    this.#forget(heard.end);
    this.#heardUntil = this.#kept[0]?.start ?? this.seconds;
  }

  #forget(until) {
    while (this.#kept[0]?.end <= until) this.#kept.shift();
  }

  async #ended(feed, error) {
    if (feed !== this.#feed) return;
    this.#feed = null;
    this.#transcript.setPartial(null);
    if (!error || !this.isRecording) {
      if (error) this.#view.trouble(`The last words may be missing: ${error.message}`);
      return this.#settled();
    }
    if (error instanceof Unauthorized || ++this.#failures > MOST_FAILURES) {
      await this.stop();
      return this.#view.failed(error);
    }
    do {
      this.#view.trouble(`${error.message}. Recording continues; the text will follow when the server is back.`);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      if (!this.isRecording) return this.#settled();
    } while (await this.#server.trouble());
    this.#view.trouble("");
    this.#open();
  }
}
