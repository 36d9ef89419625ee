"""A GGUF file of a tiny Llama, written as llama.cpp's converter does it."""

from pathlib import Path
from typing import Any

from tests.s2s_model.builders import BOS, EOS, PAD

_CONTROL, _NORMAL = 3, 1  # GGUF's token types
_LETTERS = ["h", "e", "l", "o", "w", "r", "d", "Ġ", "he", "ll"]


def write_gguf(path: Path, llm: Any) -> str:
    """Write the weights of a LlamaForCausalLM and a byte-level tokenizer over the letters of `hello world`."""
    import gguf

    config = llm.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, config.vocab_size)
    _add_weights(writer, llm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def _add_tokenizer(writer: Any, vocab_size: int) -> None:
    control = ["<unk>", "<s>", "</s>", "<pad>"]
    unused = [f"t{i}" for i in range(vocab_size - len(control) - len(_LETTERS))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(control + _LETTERS + unused)
    writer.add_token_types([_CONTROL] * len(control) + [_NORMAL] * (vocab_size - len(control)))
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)


def _add_weights(writer: Any, llm: Any) -> None:
    import gguf
    import numpy as np

    config = llm.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in llm.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # a reader takes the embedding where there is no head
        weight = tensor.numpy()
        rotated = next((h for part, h in heads.items() if part in name), None)
        if rotated:  # llama.cpp rotates neighbours, transformers the two halves of a head
            halves = weight.reshape(rotated, 2, -1, weight.shape[1])
            weight = halves.swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), np.ascontiguousarray(weight))
