// The camera beside what a video pipeline makes of it: frames of RGB24, one at a time.

const WIDTH = 320;
const HEIGHT = 240;
const AVERAGED = 20;
const FRAME_MS = 1000 / 15;

export class Camera {
  #server;
  #seen;
  #processed;
  #view;
  #stream = null;

  /** `view` shows what happens: `rate(frames a second)`, `trouble(sentence)` and `failed(error)`. */
  constructor(server, seen, processed, view) {
    this.#server = server;
    this.#seen = seen;
    this.#processed = processed;
    this.#view = view;
  }

  get isRunning() { return this.#stream !== null; }

  async start(pipeline) {
    if (!navigator.mediaDevices) throw new Error("a browser lends its camera only to pages of https:// and of localhost");
    this.#stream = await navigator.mediaDevices.getUserMedia({ video: { width: WIDTH, height: HEIGHT } });
    this.#seen.srcObject = this.#stream;
    await this.#seen.play();
    this.#run(pipeline);
  }

  stop() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = this.#seen.srcObject = null;
  }

  async #run(pipeline) {
    const stream = this.#stream;
    const grabber = new OffscreenCanvas(WIDTH, HEIGHT).getContext("2d", { willReadFrequently: true });
    const target = this.#processed.getContext("2d");
    const times = [performance.now()];
    let failed = false;
    while (stream === this.#stream) {
      grabber.drawImage(this.#seen, 0, 0, WIDTH, HEIGHT);
      try {
        const frame = await this.#process(pipeline, toRgb(grabber.getImageData(0, 0, WIDTH, HEIGHT).data));
        target.putImageData(new ImageData(toRgba(frame), WIDTH, HEIGHT), 0, 0);
        if (failed) this.#view.trouble("");
        failed = false;
      } catch (error) {
        failed = true;
        this.#view.failed(error);
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
      times.push(performance.now());
      if (times.length > AVERAGED) times.shift();
      this.#view.rate(((times.length - 1) * 1000) / (times.at(-1) - times[0]));
      await new Promise((resolve) => setTimeout(resolve, Math.max(5, FRAME_MS - (performance.now() - times.at(-2)))));
    }
  }

  async #process(pipeline, body) {
    const gateway = this.#server.role === "gateway";
    const answer = await this.#server.fetch(gateway ? "live/video-to-video" : encodeURIComponent(pipeline), {
      method: "POST", body, headers: { "Content-Type": "application/octet-stream", ...(gateway && { "X-Model-Id": pipeline }) },
    });
    return new Uint8Array(await answer.arrayBuffer());
  }
}

function toRgb(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return rgb;
}

function toRgba(rgb) {
  const rgba = new Uint8ClampedArray((rgb.length / 3) * 4).fill(255);
  for (let from = 0, to = 0; from < rgb.length; to += 4) {
    rgba[to] = rgb[from++];
    rgba[to + 1] = rgb[from++];
    rgba[to + 2] = rgb[from++];
  }
  return rgba;
}
