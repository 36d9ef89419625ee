"""How a token is chosen from logits: the best one, or drawn.

Shapes: `*` any, `V` entries of a vocabulary or codebook.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor


@dataclass
class Sampling:
    """How one channel chooses. Temperature 0 takes the best token; the others narrow what is drawn from."""

    temperature: float = 0.0  # 0: greedy; 1: the model's own distribution
    top_k: int = 0  # draw from the k best; 0: all
    top_p: float = 1.0  # draw from the best that together have this probability


@dataclass
class GenerationConfig:
    """How each channel chooses its next token."""

    text: Sampling = field(default_factory=Sampling)  # the agent's text
    audio: Sampling = field(default_factory=Sampling)  # the agent's codes, each codebook on its own
    user_text: Sampling = field(default_factory=Sampling)  # what the user says, with predict_user_text


def as_generation_config(config: GenerationConfig | Mapping[str, Any]) -> GenerationConfig:
    """Check a mapping such as `{"text": {"temperature": 0.7}}` against `GenerationConfig`.

    Raises:
        ValueError: an unknown key, or a figure that is out of its range.
    """
    if not isinstance(config, GenerationConfig):
        try:
            built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(GenerationConfig), dict(config)))
        except OmegaConfBaseException as error:
            keys = "text, audio and user_text, each with temperature, top_k and top_p"
            raise ValueError(f"generation: {str(error).splitlines()[0]}; its keys are {keys}") from error
        assert isinstance(built, GenerationConfig)
        config = built
    check_sampling(config, "generation")
    return config


def check_sampling(config: GenerationConfig, where: str) -> None:
    """Check the ranges.

    Raises:
        ValueError: a figure is out of its range; `where` is the config key quoted.
    """
    for channel in ("text", "audio", "user_text"):
        sampling: Sampling = getattr(config, channel)
        key = f"{where}.{channel}"
        if sampling.temperature < 0:
            raise ValueError(f"{key}.temperature is {sampling.temperature}: give 0 (the best token) or more")
        if sampling.top_k < 0:
            raise ValueError(f"{key}.top_k is {sampling.top_k}: give 0 (all tokens) or more")
        if not 0 < sampling.top_p <= 1:
            raise ValueError(f"{key}.top_p is {sampling.top_p}: give a share above 0, up to 1 (all tokens)")
        if sampling.temperature == 0 and (sampling.top_k or sampling.top_p < 1):
            raise ValueError(f"{key}: top_k and top_p have no effect at temperature 0: set {key}.temperature too")


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Choose tokens [*] int64 from logits [*, V].

    Draws follow torch's global generator, or `generator`, which has to be on the logits' device.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores_NV = logits.flatten(0, -2).float()
    warpers: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    for warper in warpers:
        scores_NV = warper(None, scores_NV)
    # As torch.multinomial draws, which would wait for the device to check its input.
    rates_NV = torch.empty_like(scores_NV).exponential_(generator=generator)
    return (scores_NV.softmax(dim=-1) / rates_NV).argmax(dim=-1).view(logits.shape[:-1])


@contextmanager
def drawing_from(source: torch.Generator | None, own: torch.Generator) -> Iterator[None]:
    """Within this `own` draws what `source` would; what is drawn is used up there. None is torch's global one.

    Raises:
        ValueError: they are on devices of two kinds.
    """
    source = global_generator(own.device) if source is None else source
    if source.device.type != own.device.type:
        raise ValueError(f"generator is on {source.device}, the model on {own.device}: make it for the model's device")
    own.set_state(source.get_state())
    yield
    source.set_state(own.get_state())


@contextmanager
def unchanged(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Draws within this aren't used up. None is torch's global generator of the device."""
    generator = global_generator(device) if generator is None else generator
    state = generator.get_state()
    yield
    generator.set_state(state)


def global_generator(device: torch.device) -> torch.Generator:
    """The one that torch draws from on a device."""
    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
