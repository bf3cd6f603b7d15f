// Collects the microphone's samples into pieces of a tenth of a second, as PCM16.

class Microphone extends AudioWorkletProcessor {
  #piece = new Int16Array(Math.round(sampleRate / 10));
  #filled = 0;
  #peak = 0;

  process([[samples]]) {
    for (const sample of samples ?? []) {
      const value = Math.max(-1, Math.min(1, sample));
      this.#peak = Math.max(this.#peak, Math.abs(value));
      this.#piece[this.#filled++] = value * 32767;
      if (this.#filled === this.#piece.length) this.#send();
    }
    return true;
  }

  #send() {
    const piece = this.#piece;
    this.port.postMessage({ pcm: piece.buffer, peak: this.#peak }, [piece.buffer]);
    this.#piece = new Int16Array(piece.length);
    this.#filled = 0;
    this.#peak = 0;
  }
}

registerProcessor("microphone", Microphone);
