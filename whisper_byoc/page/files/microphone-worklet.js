// Collects the microphone's samples into pieces of a tenth of a second, as PCM16.

const LENGTH = Math.round(sampleRate / 10);

class Microphone extends AudioWorkletProcessor {
  #piece = new Int16Array(LENGTH);
  #filled = 0;
  #peak = 0;

  process([[samples]]) {
    for (const sample of samples ?? []) {
      const value = Math.max(-1, Math.min(1, sample));
      this.#peak = Math.max(this.#peak, Math.abs(value));
      this.#piece[this.#filled++] = value * 32767;
      if (this.#filled === LENGTH) this.#send();
    }
    return true;
  }

  #send() {
    const { buffer } = this.#piece;
    this.port.postMessage({ pcm: buffer, peak: this.#peak }, [buffer]);
    this.#piece = new Int16Array(LENGTH);
    this.#filled = 0;
    this.#peak = 0;
  }
}

registerProcessor("microphone", Microphone);
