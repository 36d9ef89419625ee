"""What an encoder must be for its streaming to give the same vectors as the whole recording does."""

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from s2s_model.perception.nemo import NemoPerception

KEY = "model.perception"
CAUSAL_SUBSAMPLING = ("dw_striding", "striding")
FRAMEWISE_NORMS = ("layer_norm", "batch_norm", "fused_batch_norm")


def check_streamable(perception: "NemoPerception") -> None:
    """Refuse what hears further than a bounded window.

    Raises:
        ValueError: the message names the config key, what it is and what it would have to be.
    """
    _check_preprocessor(perception)
    _check_encoder(perception.nemo_encoder)
    _check_adapter(perception.modality_adapter)


def _check_preprocessor(perception: "NemoPerception") -> None:
    from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor

    key = f"{KEY}.preprocessor"
    if not isinstance(perception.preprocessor, AudioToMelSpectrogramPreprocessor):
        _refuse(f"{key}._target_", type(perception.preprocessor).__name__, "AudioToMelSpectrogramPreprocessor")
    featurizer = perception.preprocessor.featurizer
    normalize = featurizer.normalize
    if normalize in ("per_feature", "all_features") or not isinstance(normalize, str | None):
        _refuse(f"{key}.normalize", normalize, "NA: the recording's mean isn't known before its end")
    if featurizer.exact_pad:
        _refuse(f"{key}.exact_pad", True, "false")
    if featurizer.frame_splicing > 1:
        _refuse(f"{key}.frame_splicing", featurizer.frame_splicing, "1")
    frame_samples = round(perception.sample_rate * perception.frame_length_s)
    if featurizer.win_length // 2 > frame_samples:
        _refuse(f"{key}.window_size", f"{featurizer.win_length} samples", f"{2 * frame_samples} at most")


def _check_encoder(encoder: Any) -> None:
    from nemo.collections.asr.modules import ConformerEncoder
    from nemo.collections.asr.parts.submodules.subsampling import ConvSubsampling

    key = f"{KEY}.encoder"
    if not isinstance(encoder, ConformerEncoder):
        _refuse(f"{key}._target_", type(encoder).__name__, "ConformerEncoder")
    pre_encode = encoder.pre_encode
    kind = getattr(pre_encode, "_subsampling", type(pre_encode).__name__)
    if not isinstance(pre_encode, ConvSubsampling) or kind not in CAUSAL_SUBSAMPLING:
        _refuse(f"{key}.subsampling", kind, " or ".join(CAUSAL_SUBSAMPLING))
    if not pre_encode.is_causal:
        _refuse(f"{key}.causal_downsampling", False, "true")
    _check_layers(encoder, key)


def _check_adapter(adapter: Any) -> None:
    from nemo.collections.asr.modules import ConformerEncoder
    from nemo.collections.speechlm2.modules.perception import IdentityConnector, MultiLayerProjectionConnector

    key = f"{KEY}.modality_adapter"
    if isinstance(adapter, ConformerEncoder):
        if not isinstance(adapter.pre_encode, nn.Linear):
            _refuse(f"{key}.subsampling_factor", adapter.subsampling_factor, "1: let the encoder do the subsampling")
        _check_layers(adapter, key)
    elif not isinstance(adapter, IdentityConnector | MultiLayerProjectionConnector):
        known = "ConformerEncoder, IdentityConnector or MultiLayerProjectionConnector"
        _refuse(f"{key}._target_", type(adapter).__name__, known)


def _check_layers(encoder: Any, key: str) -> None:
    if encoder.self_attention_model != "rel_pos":
        _refuse(f"{key}.self_attention_model", encoder.self_attention_model, "rel_pos")
    style = encoder.att_context_style
    if style not in ("chunked_limited", "regular"):
        _refuse(f"{key}.att_context_style", style, "chunked_limited")
    left, right = encoder.att_context_size
    if left < 0:
        _refuse(f"{key}.att_context_size", [left, right], "a left context of 0 or more: memory has to be bounded")
    if right < 0 or (right > 0 and style == "regular"):
        _refuse(
            f"{key}.att_context_size", [left, right], "[.., 0], or chunked_limited: each layer adds to the lookahead"
        )
    kernel = encoder.conv_kernel_size
    if list(encoder.conv_context_size) != [kernel - 1, 0]:
        _refuse(f"{key}.conv_context_size", list(encoder.conv_context_size), "causal")
    norm = encoder.layers[0].conv.norm_type
    if norm not in FRAMEWISE_NORMS:
        _refuse(f"{key}.conv_norm_type", norm, " or ".join(FRAMEWISE_NORMS))
    if encoder.reduction_subsampling is not None:
        _refuse(f"{key}.reduction", encoder.reduction_position, "null")
    if any(layer.is_adapter_available() for layer in encoder.layers):
        _refuse(key, "an encoder with NeMo adapters", "one without")


def _refuse(key: str, actual: object, wanted: str) -> None:
    raise ValueError(f"{key} is {actual}: a live session, which hears frame by frame, needs {wanted}")
