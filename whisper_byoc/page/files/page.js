// The page: what its buttons do.

import { transcribeFile } from "./files.js";
import { Operator } from "./operator.js";
import { Recorder } from "./recorder.js";
import { NO_ANSWER, Server, Unauthorized } from "./server.js";
import { clock, Transcript } from "./transcript.js";
import { Camera } from "./video.js";

const READY_EVERY_MS = 3000;
const MIME = { txt: "text/plain", srt: "application/x-subrip", vtt: "text/vtt", json: "application/json" };

const NO_DEVICE = {  // browsers' words for these are all different
  NotAllowedError: "The browser blocks the microphone or camera for this page: allow it in the address bar, and try again.",
  NotFoundError: "No microphone or camera found.",
  NotReadableError: "Another program is using the microphone or camera.",
};

const find = (id) => document.getElementById(id);
const server = new Server();
const transcript = new Transcript(find("text"), showTranscript);
const recorder = new Recorder(server, transcript, {
  recording: (on) => press("record", on, on ? "Stop" : "Record"),
  level: (peak) => { find("level").value = peak; },
  trouble: showTrouble,
  failed: showError,
});
const camera = new Camera(server, find("seen"), find("processed"), {
  rate: (frames) => { find("rate").textContent = `${frames.toFixed(0)} frames a second`; },
  trouble: showTrouble,
  failed: showError,
});
const operator = new Operator(server, find("figures"), find("details"));
let reading = null;  // breaks off the file that is being transcribed

function showTrouble(sentence) {
  find("problem").textContent = sentence && `${sentence[0].toUpperCase()}${sentence.slice(1)}`;
  find("problem").hidden = !sentence;
}

/** Show what went wrong; a missing or wrong token is asked for. */
function showError(error) {
  if (error.name === "AbortError") return;
  if (error instanceof Unauthorized) return askForToken();
  showTrouble(NO_DEVICE[error.name] ?? error.message);
}

async function attempt(action) {
  showTrouble("");
  try {
    await action();
  } catch (error) {
    showError(error);
  }
}

// -- speech

function showTranscript() {
  const { isEmpty } = transcript;
  find("empty").hidden = !isEmpty;
  for (const button of document.querySelectorAll("[data-download], #copy, #clear")) button.disabled = isEmpty;
}

function chosen() {
  return { pipeline: find("speech-pipeline").value, language: find("language").value };
}

function press(id, pressed, label) {
  find(id).setAttribute("aria-pressed", pressed);
  find(`${id}-label`).textContent = label;
}

async function record() {
  find("record").disabled = true;
  try {
    if (recorder.isRecording) {
      find("progress").textContent = "the last words …";
      await recorder.stop();
    } else {
      reading?.abort();
      transcript.clear();
      await recorder.start(chosen());
    }
  } finally {
    find("record").disabled = false;
    find("progress").textContent = "";
  }
}

async function read(file) {
  if (recorder.isRecording) throw new Error("stop the recording first");
  reading?.abort();
  const own = (reading = new AbortController());
  transcript.clear();
  find("progress").textContent = `${file.name} …`;
  try {
    await transcribeFile(server, file, chosen(), transcript, own.signal);
    if (transcript.isEmpty) transcript.addLoss(0, "No speech was found.");
  } finally {
    if (reading === own) find("progress").textContent = "";
  }
}

function download(format) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([transcript.render(format)], { type: `${MIME[format]};charset=utf-8` }));
  link.download = `transcript.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function copy() {
  await navigator.clipboard.writeText(transcript.render("txt"));
  find("progress").textContent = "copied";
  setTimeout(() => { find("progress").textContent = ""; }, 1500);
}

find("record").onclick = () => attempt(record);
find("file").onchange = ({ target }) => {
  const [file] = target.files;
  target.value = "";
  if (file) attempt(() => read(file));
};
find("copy").onclick = () => attempt(copy);
find("clear").onclick = () => transcript.clear();
for (const button of document.querySelectorAll("[data-download]")) button.onclick = () => download(button.dataset.download);

const drop = find("drop");
document.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
document.ondragleave = () => drop.classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) attempt(() => read(file));
};
setInterval(() => { if (recorder.isRecording) find("clock").textContent = clock(recorder.seconds); }, 250);

// -- video

find("camera").onclick = () => attempt(async () => {
  if (camera.isRunning) camera.stop();
  else await camera.start(find("video-pipeline").value);
  press("camera", camera.isRunning, camera.isRunning ? "Stop the camera" : "Start the camera");
});

// -- tabs

const tabs = [...document.querySelectorAll('[role="tab"]')];

function open(tab) {
  for (const each of tabs) {
    const selected = each === tab;
    each.setAttribute("aria-selected", selected);
    each.tabIndex = selected ? 0 : -1;
    find(each.getAttribute("aria-controls")).hidden = !selected;
  }
  operator.watch(tab.id === "tab-operator");
}

for (const [at, tab] of tabs.entries()) {
  tab.onclick = () => open(tab);
  tab.onkeydown = ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const next = tabs[(at + step + tabs.length) % tabs.length];
    next.focus();
    open(next);
  };
}

// -- the server

function fill(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

async function load() {
  await server.load();
  const speech = server.pipelines.filter(({ media }) => media !== "video" && media !== "bytes");
  const video = server.pipelines.filter(({ media }) => media !== "audio");
  fill(find("speech-pipeline"), speech.map(({ name }) => [name, name]));
  fill(find("video-pipeline"), video.map(({ name }) => [name, name]));
  fill(find("language"), [["", "server default"], ["auto", "detect"], ...Object.entries(server.languages)]);
  find("record").disabled = find("file").disabled = !speech.length;
  find("camera").disabled = !video.length;
  showNotice();
  if (server.wants_token && !server.token) askForToken();
  if (!speech.length && video.length) open(find("tab-video"));
}

/** Show what the chosen pipeline has to say of itself. */
function showNotice() {
  const { notice } = server.pipelines.find(({ name }) => name === chosen().pipeline) ?? {};
  find("notice").textContent = notice ? `${notice[0].toUpperCase()}${notice.slice(1)}.` : "";
  find("notice").hidden = !notice;
}

function askForToken() {
  showTrouble(server.token && "Wrong token.");
  find("token-form").hidden = false;
  find("token").value = "";
  find("token").focus();
}

find("speech-pipeline").onchange = showNotice;

let loaded = false;

async function watch() {
  const trouble = await server.trouble();
  find("state").textContent = trouble || `${server.role} ready`;
  find("state").dataset.ready = trouble ? "no" : "yes";
  if (!loaded && trouble !== NO_ANSWER) {
    try {
      await load();
      loaded = server.pipelines.length > 0;
    } catch (error) {
      showTrouble(error.message);
    }
  }
  setTimeout(watch, READY_EVERY_MS);
}

find("token-form").onsubmit = (event) => {
  event.preventDefault();
  server.token = find("token").value;
  find("token-form").hidden = true;
  showTrouble("");
};

watch();
