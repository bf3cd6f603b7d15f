// A recording from a file: sent whole, and its text as it comes.

import { inSeconds } from "./feeds.js";
import { events } from "./server.js";

/** Transcribe a file into a transcript. Rejects with the server's sentence; `signal` breaks off. */
export async function transcribeFile(server, file, { pipeline, language }, transcript, signal) {
  const form = new FormData();
  form.append("response_format", "sse");
  if (language) form.append("language", language);
  form.append("file", file);
  const gateway = server.role === "gateway";
  const answer = await server.fetch(`${gateway ? "process/request/" : ""}${encodeURIComponent(pipeline)}`, {
    method: "POST", body: form, signal, headers: gateway ? server.jobHeader(pipeline) : {},
  });
  for await (const record of events(answer)) {
    if (record.type === "error") throw new Error(record.error?.message ?? record.error);
    if (record.type !== "transcript") continue;
    for (const { start_ms, end_ms, text } of record.segments) transcript.add({ start: start_ms / 1000, end: end_ms / 1000, text });
    if (!record.segments.length) transcript.add(inSeconds(record));
  }
}
