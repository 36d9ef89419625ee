"""Train the demo's codec, a small NeMo `AudioCodecModel`, adversarially, on one GPU within minutes.

    hatch run demo:speech SPEECH_DIR
    hatch run demo:codec SPEECH_DIR general.nemo --minutes 8.3
    hatch run demo:codec SPEECH_DIR demo/codec.nemo --start general.nemo --answers 0.75 --minutes 7.5

The second stage spends three quarters of its examples on what the agent says in the demo. Sixteen minutes are too
few for a codec of all English; they are enough for one voice and these answers.

12.5 frames a second at 22,050 Hz. Two things keep the finite scalar quantizer from collapsing: every encoder
convolution is scaled to unit output before the first step (at the default init the encoder's output has a
standard deviation of 2e-4, so every frame gets the same code), and encoder outputs beyond the quantizer's
range are penalised (else they saturate). Watch `codes`: the distinct codes of the first codebook in a batch.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

RATE_HZ = 22050
FRAME = 1764  # samples of 80 ms
BATCH, CROP_FRAMES = 32, 14
WARM_UP = 3  # steps before a graph is captured: libraries choose and load their kernels
MODULES = "nemo.collections.tts.modules.audio_codec_modules"
LOSSES = "nemo.collections.tts.losses.audio_codec_loss"


def codec_config(num_codebooks: int, adversarial: bool) -> DictConfig:
    """NeMo's configuration of the codec; the discriminators are left out of the published file."""
    resolutions = [[256, 64, 256], [512, 128, 512], [1024, 256, 1024], [2048, 512, 2048]]
    config: dict[str, Any] = {
        "target": "nemo.collections.tts.models.AudioCodecModel",
        "sample_rate": RATE_HZ,
        "samples_per_frame": FRAME,
        "max_epochs": 1,
        "steps_per_epoch": 1,
        "mel_loss_l1_scale": 10.0,
        "mel_loss_l2_scale": 0.0,
        "stft_loss_scale": 10.0,
        "time_domain_loss_scale": 0.0,
        "commit_loss_scale": 0.0,
        "loss_resolutions": resolutions,
        "mel_loss_dims": [20, 40, 80, 120],
        "mel_loss_log_guard": 0.01,  # at 1.0, NeMo's default, quiet consonants hardly count
        "stft_loss_log_guard": 0.01,
        "feature_loss_type": "absolute",
        "audio_encoder": {  # 75 and 37.5 spectra a second, then 12.5 frames
            "_target_": f"{MODULES}.MultiResolutionSTFTEncoder",
            "out_dim": 4 * num_codebooks,
            "resolutions": [[1024, 294, 1024], [2048, 588, 2048]],
            "resolution_filter_list": [128, 192],
            "down_sample_filter_list": [256],
            "down_sample_rate_list": [3],
        },
        "audio_decoder": {  # most layers run at 75 Hz, which is cheap; causal, so that it can stream
            "_target_": f"{MODULES}.ResNetDecoder",
            "input_dim": 4 * num_codebooks,
            "input_filters": 256,
            "pre_up_sample_rates": [3, 2],
            "pre_up_sample_filters": [256, 256],
            "n_hidden_layers": 4,
            "hidden_filters": 512,
            "resblock_up_sample_rates": [7, 7, 6],
            "resblock_up_sample_filters": [128, 64, 16],
            "is_causal": True,
        },
        "vector_quantizer": {
            "_target_": f"{MODULES}.GroupFiniteScalarQuantizer",
            "num_groups": num_codebooks,
            "num_levels_per_group": [8, 7, 6, 6],
        },
        "generator_loss": {"_target_": f"{LOSSES}.GeneratorSquaredLoss"},
        "discriminator_loss": {"_target_": f"{LOSSES}.DiscriminatorSquaredLoss"},
        "optim": {"_target_": "torch.optim.Adam", "lr": 3e-4, "betas": [0.8, 0.99]},
    }
    if adversarial:
        config["discriminator"] = {
            "_target_": f"{MODULES}.Discriminator",
            "discriminators": [
                {
                    "_target_": f"{MODULES}.MultiResolutionDiscriminatorSTFT",
                    "resolutions": resolutions[1:],
                    "stft_bands": [[0.0, 0.1], [0.1, 0.25], [0.25, 0.5], [0.5, 1.0]],
                },
            ],
        }
    return OmegaConf.create(config)


def load_speech(folder: Path, device: torch.device) -> Tensor:
    """All speech of `folder` as one tensor [S] at 22,050 Hz."""
    from lhotse.augmentation import get_or_create_resampler

    chunks = []
    for path in sorted(folder.glob("speech-*.flac")):
        audio, rate_hz = soundfile.read(path, dtype="float32")
        resample = get_or_create_resampler(rate_hz, RATE_HZ)
        chunks.append(resample(torch.from_numpy(audio)[None])[0])
    if not chunks:
        raise FileNotFoundError(f"no speech-*.flac in {folder}: make them with `hatch run demo:speech {folder}`")
    return torch.cat(chunks).to(device)


class Crops:
    """Random crops [BATCH, CROP_FRAMES * FRAME] of speech, one in sixteen of them silent.

    A share of them comes from `answers.flac` and starts on a frame, as the agent's turns do in the corpus.
    """

    def __init__(self, folder: Path, answers_share: float, device: torch.device) -> None:
        self.speech_S = load_speech(folder, device)
        audio, rate_hz = soundfile.read(folder / "answers.flac", dtype="float32")
        assert rate_hz == RATE_HZ
        self.answers_S = torch.from_numpy(audio).to(device)
        self.num_answers = round(BATCH * answers_share)
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self) -> Tensor:
        """Draw one batch, at random gain."""
        device, size = self.speech_S.device, CROP_FRAMES * FRAME
        starts = self._random(len(self.speech_S) - size, BATCH - self.num_answers)
        on_grid = self._random((len(self.answers_S) - size) // FRAME, self.num_answers) * FRAME
        offsets = torch.arange(size, device=device)
        audio = torch.cat([self.speech_S[starts[:, None] + offsets], self.answers_S[on_grid[:, None] + offsets]])
        gain = torch.empty(BATCH, 1, device=device).uniform_(0.9, 1.1, generator=self.generator)
        gain[: BATCH // 16] = 0.0
        return audio * gain

    def _random(self, high: int, count: int) -> Tensor:
        return torch.randint(0, high, (count,), generator=self.generator, device=self.speech_S.device)


@torch.no_grad()
def scale_to_unit_output(modules: Iterable[nn.Module], run: Any) -> None:
    """Scale each convolution in the order of execution so that its output has unit standard deviation."""
    handles = []

    def rescale(module: Any, inputs: Any, output: Tensor) -> Tensor:
        std = output.std().clamp(min=1e-8)
        module.parametrizations.weight.original0.div_(std)  # weight norm's magnitude
        module.bias.div_(std)
        return output / std

    for module in modules:
        handles.append(module.register_forward_hook(rescale))
    run()
    for handle in handles:
        handle.remove()


def convolutions(module: nn.Module) -> list[nn.Module]:
    """All weight-normed convolutions below `module`."""
    convs = [m for m in module.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]
    return [m for m in convs if hasattr(m, "parametrizations")]


class CodecTrainer:
    """Generator and discriminator steps over NeMo's own modules and losses."""

    def __init__(self, num_codebooks: int, device: torch.device) -> None:
        from nemo.collections.tts.models import AudioCodecModel
        from nemo.collections.tts.modules.audio_codec_modules import CausalConv1dNorm

        self.model = AudioCodecModel(codec_config(num_codebooks, adversarial=True)).to(device).train()
        model = self.model
        generator = [*model.audio_encoder.parameters(), *model.audio_decoder.parameters()]
        options: dict[str, Any] = {"betas": (0.8, 0.99), "weight_decay": 0.01, "fused": True}
        options["capturable"] = device.type == "cuda"
        self.learning_rate = torch.zeros((), device=device)  # a tensor, so that graphs read it anew
        self.generator_optimizer = torch.optim.AdamW(generator, lr=self.learning_rate, **options)
        self.discriminator_optimizer = torch.optim.AdamW(
            model.discriminator.parameters(), lr=self.learning_rate, **options
        )
        for module in model.audio_decoder.modules():
            if isinstance(module, CausalConv1dNorm):  # it reads these on the host in each call
                for name, size in module.named_buffers(recurse=False):
                    setattr(module, name, size.cpu())

    def load(self, path: Path) -> None:
        """Go on from a published codec; its discriminators weren't published and start anew."""
        from nemo.collections.tts.models import AudioCodecModel

        state = AudioCodecModel.restore_from(str(path), map_location="cpu").float().state_dict()
        self.model.load_state_dict(state, strict=False)

    def initialize(self, audio_BS: Tensor) -> None:
        """Scale encoder and decoder (but its last layer) to unit outputs."""
        model = self.model
        lens = torch.full((len(audio_BS),), audio_BS.shape[1], device=audio_BS.device)
        scale_to_unit_output(
            convolutions(model.audio_encoder), lambda: model.audio_encoder(audio=audio_BS, audio_len=lens)
        )
        encoded, frames = model.audio_encoder(audio=audio_BS, audio_len=lens)
        last = model.audio_decoder.post_conv.conv
        inner = [m for m in convolutions(model.audio_decoder) if m is not last]
        scale_to_unit_output(inner, lambda: model.audio_decoder(inputs=encoded, input_len=frames))

    def step(self, audio_BS: Tensor, adversarial: bool) -> dict[str, Tensor]:
        """One step of the generator and, if `adversarial`, of the discriminators."""
        model = self.model
        lens = torch.full((len(audio_BS),), audio_BS.shape[1], device=audio_BS.device)
        encoded, frames = model.audio_encoder(audio=audio_BS, audio_len=lens)
        overshoot = (encoded.abs() - 1.5).clamp(min=0).square().mean()
        quantized, indices = model.vector_quantizer(inputs=encoded, input_len=frames)
        audio_gen, _ = model.audio_decoder(inputs=quantized, input_len=frames)
        mel, _ = model.mel_loss_fn(audio_real=audio_BS, audio_gen=audio_gen, audio_len=lens)
        stft = model.stft_loss_fn(audio_real=audio_BS, audio_gen=audio_gen, audio_len=lens)
        loss = model.mel_loss_l1_scale * mel + model.stft_loss_scale * stft + overshoot
        if adversarial:
            real, fake, _, _ = model.discriminator(audio_real=audio_BS, audio_gen=audio_gen.detach())
            disc_loss = model.disc_loss_fn(disc_scores_real=real, disc_scores_gen=fake)
            self._update(self.discriminator_optimizer, disc_loss)
            _, fake, maps_real, maps_gen = model.discriminator(audio_real=audio_BS, audio_gen=audio_gen)
            loss = loss + model.gen_loss_fn(disc_scores_gen=fake)
            loss = loss + model.feature_loss_fn(fmaps_real=maps_real, fmaps_gen=maps_gen)
        self._update(self.generator_optimizer, loss)
        return {"mel": mel, "stft": stft, "overshoot": overshoot, "indices": indices}

    @staticmethod
    def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            torch.nn.utils.clip_grad_norm_(group["params"], 10.0)
        optimizer.step()

    def publish(self, path: Path) -> None:
        """Write encoder, decoder and quantizer as a .nemo, weights in float16 (loaded as float32)."""
        from nemo.collections.tts.models import AudioCodecModel

        published = AudioCodecModel(codec_config(self.model.num_codebooks, adversarial=False))
        state = {k: v.cpu() for k, v in self.model.state_dict().items() if not k.startswith("discriminator.")}
        published.load_state_dict(state)
        published.half().save_to(str(path))


class ReplayedStep:
    """A trainer's step, on a GPU replayed as one CUDA graph: kernel by kernel the host can't keep up."""

    def __init__(self, trainer: CodecTrainer, adversarial: bool) -> None:
        self._run = partial(trainer.step, adversarial=adversarial)
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, audio_BS: Tensor) -> dict[str, Tensor]:
        """One step; what it returns is overwritten by the next. The first takes `WARM_UP` steps more."""
        if not audio_BS.is_cuda:
            return self._run(audio_BS)
        if self._graph is None:
            self._audio_BS = audio_BS.clone()
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(WARM_UP):
                    self._run(self._audio_BS)
            torch.cuda.current_stream().wait_stream(beside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._out = self._run(self._audio_BS)
        self._audio_BS.copy_(audio_BS)
        self._graph.replay()
        return self._out


def main() -> None:
    """Train for `--minutes`, then write the codec and a sample of what it reconstructs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--adversarial-from", type=float, default=0.6, help="share of the time before it starts")
    parser.add_argument("--answers", type=float, default=0.25, help="share of crops taken from the demo's answers")
    parser.add_argument("--start", type=Path, help="go on from this codec")
    parser.add_argument("--num-codebooks", type=int, default=4)
    parser.add_argument("--samples", type=Path, help="folder for a minute of reconstructed answers")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    crops = Crops(args.speech, args.answers, device)
    trainer = CodecTrainer(args.num_codebooks, device)
    if args.start:
        trainer.load(args.start)
    else:
        trainer.initialize(crops())
    plain, adversarial = (ReplayedStep(trainer, is_adversarial) for is_adversarial in (False, True))
    start = last_log = time.monotonic()
    step = 0
    while (share := (time.monotonic() - start) / (args.minutes * 60)) < 1:
        trainer.learning_rate.fill_(4e-4 * min(1.0, (step + 1) / 200) * max(0.05, math.cos(share * math.pi / 2)))
        out = (adversarial if share > args.adversarial_from else plain)(crops())
        step += 1
        if time.monotonic() - last_log > 15 or step == 1:
            last_log = time.monotonic()
            codes = len(out["indices"][0].unique())
            line = {k: round(float(out[k]), 4) for k in ("mel", "stft", "overshoot")}
            print(json.dumps({"step": step, "share": round(share, 3), "codes": codes, **line}), flush=True)
    trainer.publish(args.out)
    if args.samples:
        args.samples.mkdir(parents=True, exist_ok=True)
        audio = crops.answers_S[None, : 60 * RATE_HZ]
        lens = torch.tensor([audio.shape[1]], device=device)
        with torch.no_grad():
            decoded, _ = trainer.model.eval()(audio=audio, audio_len=lens)
        for name, wave in (("reference", audio), ("decoded", decoded)):
            soundfile.write(args.samples / f"{name}.flac", np.asarray(wave[0].cpu()), RATE_HZ)


if __name__ == "__main__":
    main()
