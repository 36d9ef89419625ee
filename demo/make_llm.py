"""Write the demo's LLM: the config of a 1.5 M parameter Llama and a tokenizer of the demo's own words.

hatch run demo:llm demo/llm
"""

import argparse
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import Metaspace
from transformers import LlamaConfig, PreTrainedTokenizerFast

from s2s_data.demo.dialogues import all_exchanges

VOCAB_SIZE = 512


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer; almost every word of the demo is one token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = Metaspace()
    texts = [text for exchange in all_exchanges() for text in (exchange.question, exchange.answer)]
    alphabet = sorted({letter for text in texts for letter in text} | set("abcdefghijklmnopqrstuvwxyz'-,!"))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=["<unk>", "<pad>", "<s>", "</s>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def main() -> None:
    """Write config.json and the tokenizer's files; there are no weights, training starts at random ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", type=Path)
    out_dir = parser.parse_args().out_dir
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(out_dir)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(out_dir)


if __name__ == "__main__":
    main()
