"""A NeMo speaker model, by ``.nemo`` file or pretrained name."""

from pathlib import Path

import torch

from s2s_eval.asr import Samples
from s2s_eval.lifecycle import TorchModel, one_line

DEFAULT_SAMPLE_RATE_HZ = 16000


class NemoSpeakers(TorchModel):
    """See :class:`s2s_eval.speaker_similarity.SpeakerModel`."""

    def __init__(self, model: str, device: str) -> None:
        from nemo.collections.asr.models import EncDecSpeakerLabelModel

        try:
            if model.endswith(".nemo"):
                module = EncDecSpeakerLabelModel.restore_from(str(Path(model).expanduser()), map_location="cpu")
            else:
                module = EncDecSpeakerLabelModel.from_pretrained(model, map_location="cpu")
        except Exception as error:  # NeMo raises whatever the hub, tar or Hydra raise
            raise ValueError(
                f"speaker_similarity: NeMo could not load {model!r}: {one_line(error)}. Check the name or file"
            ) from error
        super().__init__(module, device)
        self.sample_rate_hz = int(module.cfg.preprocessor.get("sample_rate", DEFAULT_SAMPLE_RATE_HZ))

    def embed(self, audio_S: Samples) -> Samples:
        """Return the audio's embedding [H]."""
        signal = torch.from_numpy(audio_S)[None].to(self._device)
        with torch.inference_mode():
            _, embedding_BH = self._module(
                input_signal=signal, input_signal_length=torch.tensor([signal.shape[1]], device=self._device)
            )
            unit: Samples = torch.nn.functional.normalize(embedding_BH[0].float(), dim=0).cpu().numpy()
        return unit
