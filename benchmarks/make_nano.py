"""Create the folder of the built-in `nano` model: tokenizer, chat template and configuration, no weights.

    python benchmarks/make_nano.py [FOLDER]

The tokenizer is a byte-level BPE. Each digit is one token. The merges are trained on the texts of the `sums` tasks, so
that their common words are one token; other text becomes bytes. The output is deterministic.
"""

import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from judgelit.batches.tokenizer_files import NANO_FOLDER
from judgelit.judging.prompts import Templates
from judgelit.records.records import PreferencePair
from judgelit.synthesis.tasks.pairs import TaskPairs, worked_judgment

SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else NANO_FOLDER
    tokenizer = Tokenizer(models.BPE())
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=256,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    LlamaConfig(
        vocab_size=len(fast),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=256,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    ).save_pretrained(folder)
    print(f"{len(fast)} tokens; written to {folder}")


def texts() -> list[str]:
    templates = Templates(["nano-*"]).load().values()
    pairs = TaskPairs(kinds=["sums"], difficulties=[1, 2, 3, 4], count=2000, distinct=False).read(PreferencePair)
    prompts = [template.render(pair)[0]["content"] for pair in pairs for template in templates]
    return [
        *prompts,
        *map(worked_judgment, pairs),
        *["At a glance: [[A]]", "At a glance: [[B]]"] * 1000,
        "assistant",
        "user",
    ]


if __name__ == "__main__":
    main()
