// The server behind the page: what it serves, whether it is ready, and its token.

const TOKEN = "whisper-byoc token";
const ANSWER_MS = 3000;
export const NO_ANSWER = "no answer from the server";

export class Unauthorized extends Error {}

export class Server {
  role = "container";
  pipelines = [];
  languages = {};

  get token() { return sessionStorage.getItem(TOKEN) ?? ""; }
  set token(value) { sessionStorage.setItem(TOKEN, value); }

  async load() {
    Object.assign(this, await (await this.fetch("page/server.json")).json());
  }

  /** Raises `Unauthorized` for a missing or wrong token, and an `Error` with the server's sentence for every other failure. */
  async fetch(path, options = {}) {
    const headers = new Headers(options.headers);
    if (this.token) headers.set("Authorization", `Bearer ${this.token}`);
    const answer = await fetch(path, { ...options, headers }).catch((error) => {
      throw error instanceof TypeError ? new Error(NO_ANSWER) : error;  // browsers have words of their own for it
    });
    if (answer.ok) return answer;
    const sentence = await errorIn(answer);
    throw answer.status === 401 ? new Unauthorized(sentence) : new Error(sentence);
  }

  /** Return why the server cannot take work; empty when it can. */
  async trouble() {
    try {
      const answer = await fetch("readyz", { signal: AbortSignal.timeout(ANSWER_MS) });
      return answer.ok ? "" : (await answer.json()).reasons?.join("; ") || `it answers ${answer.status}`;
    } catch {
      return NO_ANSWER;
    }
  }

  /** Open a WebSocket. Browsers send no `Authorization` with it, so the token travels as a subprotocol. */
  socket(path, query) {
    const url = new URL(path, document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    url.search = new URLSearchParams(query);
    const token = this.token && `base64url.bearer.${base64(this.token).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "")}`;
    return new WebSocket(url, token ? ["whisper-byoc", token] : ["whisper-byoc"]);
  }

  /** Return the header that describes a BYOC job to a gateway. */
  jobHeader(capability, parameters = {}) {
    const job = { capability, timeout_seconds: 3600, request: "{}", parameters: JSON.stringify(parameters) };
    return { Livepeer: base64(JSON.stringify(job)) };
  }
}

function base64(text) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

async function errorIn(answer) {
  const text = await answer.text();
  try {
    const { error } = JSON.parse(text);
    return error?.message ?? error ?? text;
  } catch {
    return text.trim() || `the server answers ${answer.status}`;
  }
}

/** Yield the objects in the server-sent events of an answer, until it ends or says [DONE]. */
export async function* events(answer) {
  let rest = "";
  for await (const part of readable(answer.body.pipeThrough(new TextDecoderStream()))) {
    const lines = (rest + part).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

async function* readable(stream) {  // not every browser iterates over streams by itself
  const reader = stream.getReader();
  try {
    for (let step; !(step = await reader.read()).done;) yield step.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}
