// The agent's voice: frames come when the network brings them, samples go when the loudspeaker wants them.
const FEWEST = 2; // frames before it begins, and begins again after a gap
const MOST = 8; // frames that may wait; beyond, the oldest are cut, for the voice would stay behind
const KEPT = 3; // frames that are left then
const TOLD_EVERY = 20; // blocks of 128 samples

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.frames = [];
    this.position = 0; // in the first frame
    [this.isPlaying, this.gaps, this.cuts, this.blocks] = [false, 0, 0, 0];
    this.port.onmessage = ({ data }) => this.take(data);
  }

  take(frame) {
    this.frames.push(frame);
    if (this.frames.length > MOST) {
      this.cuts += this.frames.length - KEPT;
      this.frames.splice(0, this.frames.length - KEPT);
      this.position = 0;
    }
    if (this.frames.length >= FEWEST) this.isPlaying = true;
  }

  process(_, [[output]]) {
    for (let i = 0; this.isPlaying && i < output.length; i++) output[i] = this.next();
    if (++this.blocks % TOLD_EVERY === 0) {
      const waiting = this.frames.reduce((sum, frame) => sum + frame.length, -this.position);
      this.port.postMessage({ waiting_ms: (1000 * waiting) / sampleRate, gaps: this.gaps, cuts: this.cuts });
    }
    return true;
  }

  next() {
    if (!this.frames.length) {
      this.isPlaying = false;
      this.gaps += 1;
      return 0;
    }
    const sample = this.frames[0][this.position++];
    if (this.position === this.frames[0].length) {
      this.frames.shift();
      this.position = 0;
    }
    return sample;
  }
}
registerProcessor("playback", Playback);
