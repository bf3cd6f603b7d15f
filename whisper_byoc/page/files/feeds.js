// Live sound to the server and records from it: a WebSocket at a container, a BYOC stream at a gateway.
//
// Both have `send(pcm)` for PCM16 and `finish()` for its end. `onrecord({text, final, start, end})` gets what was heard, times in
// seconds of this feed, and `onend(error)` is called once: with null when all is done.

import { events, NO_ANSWER } from "./server.js";

export function openFeed(server, options, onrecord, onend) {
  return server.role === "gateway" ? new StreamFeed(server, options, onrecord, onend) : new SocketFeed(server, options, onrecord, onend);
}

class SocketFeed {
  #socket;
  #waiting = [];

  constructor(server, { pipeline, language, rate }, onrecord, onend) {
    let sentence = "";
    const query = { pipeline, rate, ...(language && { language }) };
    this.#socket = server.socket("transcribe", query);
    this.#socket.onopen = () => this.#flush();
    this.#socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.error) sentence = message.error;
      else onrecord(message);
    };
    this.#socket.onclose = async ({ code }) => onend(code === 1000 ? null : sentence ? new Error(sentence) : await reason(server, query));
  }

  send(pcm) { this.#pass(pcm); }
  finish() { this.#pass("eos"); }

  #pass(message) {
    this.#waiting.push(message);
    if (this.#socket.readyState === WebSocket.OPEN) this.#flush();
  }

  #flush() {
    for (const message of this.#waiting.splice(0)) this.#socket.send(message);
  }
}

/** Return why a WebSocket was refused, which a browser does not tell: a plain request is refused for the same reason. */
async function reason(server, query) {
  const error = await server.fetch(`transcribe?${new URLSearchParams(query)}`).then(() => null, (refusal) => refusal);
  return !error || error.message === NO_ANSWER || error.message.includes("WebSocket") ? new Error("the connection broke") : error;
}

const SEGMENT_MS = 250;

class StreamFeed {
  #server;
  #waiting = [];
  #ending = false;
  #aborting = new AbortController();

  constructor(server, options, onrecord, onend) {
    this.#server = server;
    this.#run(options, onrecord).then(() => onend(null), (error) => {
      if (!this.#aborting.signal.aborted) onend(error);
      this.#aborting.abort();
    });
  }

  send(pcm) { this.#waiting.push(pcm); }
  finish() { this.#ending = true; }

  async #run({ pipeline, language, rate }, onrecord) {
    const params = { input: "pcm16", partials: true, ...(rate !== 16000 && { rate }), ...(language && { language }) };
    const wanted = { enable_video_ingress: true, enable_data_output: true };
    const started = await this.#fetch("process/stream/start", {
      method: "POST",
      headers: { ...this.#server.jobHeader(pipeline, wanted), "Content-Type": "application/json" },
      body: JSON.stringify({ params }),
    });
    const urls = await started.json();
    const sending = this.#sendSegments(path(urls.publish_url));
    const reading = this.#readRecords(path(urls.data_url), onrecord);
    await Promise.all([sending, reading]);
  }

  async #sendSegments(channel) {
    for (let sequence = 0; !this.#ending || this.#waiting.length;) {
      if (this.#waiting.length) {
        const body = new Blob(this.#waiting.splice(0));
        await this.#fetch(`${channel}/${sequence++}`, { method: "POST", headers: { "Content-Type": "audio/L16" }, body });
      } else {
        await new Promise((resolve) => setTimeout(resolve, SEGMENT_MS));
        this.#aborting.signal.throwIfAborted();
      }
    }
    await this.#fetch(channel, { method: "DELETE" });
  }

  async #readRecords(url, onrecord) {
    for await (const record of events(await this.#fetch(url))) {
      if (record.type === "stream_ended") return;
      if (record.type === "error") throw new Error(record.error);
      if (record.type === "transcript") onrecord(inSeconds(record));
    }
    throw new Error("the connection broke");
  }

  #fetch(url, options = {}) {
    return this.#server.fetch(url, { ...options, signal: this.#aborting.signal });
  }
}

/** Return the address as this page reaches it: the gateway may know itself by another name. */
function path(url) {
  return `.${new URL(url).pathname}`;
}

/** Return a container's record in the form of the WebSocket's messages. */
export function inSeconds({ text = "", is_final: final = true, segments = [], timing }) {
  const start = segments[0]?.start_ms ?? timing?.media_window_start_ms ?? 0;
  const end = segments.at(-1)?.end_ms ?? timing?.media_window_end_ms ?? start;
  return { text, final, start: start / 1000, end: end / 1000 };
}
