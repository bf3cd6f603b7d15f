// The microphone, as pieces of PCM16.

import { NO_ANSWER } from "./server.js";

const RATE = 16000;
const START_MS = 5000;

/** Open the microphone: `onpiece(pcm, peak)` gets an ArrayBuffer of PCM16 and a level from 0 to 1, ten times a second. */
export async function openMicrophone(onpiece) {
  if (!navigator.mediaDevices) {
    throw new Error("a browser lends its microphone and camera only to pages of https:// and of localhost");
  }
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true },
  });
  const [context, source] = connect(stream);
  const close = async () => {
    for (const track of stream.getTracks()) track.stop();
    await context.close();
  };
  try {
    await context.audioWorklet.addModule("page/microphone-worklet.js").catch(() => { throw new Error(NO_ANSWER); });
    await Promise.race([context.resume(), new Promise((resolve) => setTimeout(resolve, START_MS))]);
    if (context.state !== "running") throw new Error("the browser's sound does not start; is there a device for it?");
  } catch (error) {
    close();
    throw error;
  }
  const node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
  node.port.onmessage = ({ data }) => onpiece(data.pcm, data.peak);
  source.connect(node);
  return { rate: context.sampleRate, close };
}

function connect(stream) {
  const context = new AudioContext({ sampleRate: RATE });
  try {
    return [context, context.createMediaStreamSource(stream)];
  } catch {  // Firefox does not resample a microphone; the server does
    context.close();
    const own = new AudioContext();
    return [own, own.createMediaStreamSource(stream)];
  }
}
