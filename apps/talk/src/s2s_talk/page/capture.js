// The microphone, as frames of 16-bit integers at the model's rate; runs where the browser makes audio.
class Capture extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate, samplesPerFrame } }) {
    super();
    this.ratio = sampleRate / rate; // 1, unless the browser can't record at the model's rate
    this.frame = new Int16Array(samplesPerFrame);
    this.filled = 0;
    [this.sum, this.weight] = [0, 0]; // of the samples since the last one that was put
  }

  process([channels]) {
    for (const sample of channels[0] ?? []) this.take(sample);
    return true;
  }

  // the mean over the time of a sample of the model's: a plain low-pass, enough for speech
  take(sample) {
    let rest = 1;
    while (this.weight + rest >= this.ratio) {
      const part = this.ratio - this.weight;
      this.put((this.sum + part * sample) / this.ratio);
      rest -= part;
      [this.sum, this.weight] = [0, 0];
    }
    this.sum += rest * sample;
    this.weight += rest;
  }

  put(sample) {
    this.frame[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(32768 * sample)));
    if (this.filled < this.frame.length) return;
    this.port.postMessage(this.frame.slice());
    this.filled = 0;
  }
}
registerProcessor("capture", Capture);
