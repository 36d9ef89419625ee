"""A NeMo speaker model, by ``.nemo`` file or pretrained name."""

import torch

from s2s_eval.asr import Samples
from s2s_eval.lifecycle import TorchModel
from s2s_eval.nemo_models import load_nemo, sample_rate_of


class NemoSpeakers(TorchModel):
    """See :class:`s2s_eval.speaker_similarity.SpeakerModel`."""

    def __init__(self, model: str, device: str) -> None:
        from nemo.collections.asr.models import EncDecSpeakerLabelModel

        module = load_nemo(EncDecSpeakerLabelModel, model, "speaker_similarity")
        super().__init__(module, device)
        self.sample_rate_hz = sample_rate_of(module)

    def embed(self, audio_S: Samples) -> Samples:
        """Return the audio's embedding [H]."""
        signal = torch.from_numpy(audio_S)[None].to(self._device)
        with torch.inference_mode():
            _, embedding_BH = self._module(
                input_signal=signal, input_signal_length=torch.tensor([signal.shape[1]], device=self._device)
            )
            unit: Samples = torch.nn.functional.normalize(embedding_BH[0].float(), dim=0).cpu().numpy()
        return unit
