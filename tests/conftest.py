"""Tiny models and tokenizers, made once a session: every shape and chat format that the tests need, no download."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from judgelit.batches.tokenizer import ChatTokenizer
from tests.shapes import SHAPES, UNSHAREABLE, Shapes

pytest_plugins = ["tests.training_fixtures"]

torch.set_num_threads(1)

# A loaded machine makes single examples slow; that says nothing about the code.
settings.register_profile("judgelit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("judgelit")

CONTEXT = 1024
CORPUS = [
    "Which answer is better? The first answer is right, since 6 + 6 = 12 and 12 + 3 = 15.",
    "The second answer says 25, which is wrong. Verdict: [[A]]",
    "user assistant system model question answer judge better worse left out characters",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(i)",
]

# The first line of each: BOS, EOS, padding, other control tokens.
CHATML = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA3 = """\
{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{{ message.content | trim }}<|eot_id|>{% endfor %}\
{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""

MISTRAL = """\
{{ bos_token }}{% set turns = messages %}{% set system = '' %}\
{% if messages[0].role == 'system' %}\
{% set system = messages[0].content + '\n\n' %}{% set turns = messages[1:] %}{% endif %}\
{% for message in turns %}\
{% if message.role == 'user' %}[INST] {{ (system if loop.first else '') + message.content }}[/INST]\
{% else %} {{ message.content }}{{ eos_token }}{% endif %}{% endfor %}"""

GEMMA = """\
{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}\
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}\
<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

# In the manner of DeepSeek-R1: earlier reasoning is dropped, the prompt opens the next.
THINK = """\
{{ bos_token }}{% for message in messages %}\
{% if message.role == 'system' %}{{ message.content }}\
{% elif message.role == 'user' %}<｜User｜>{{ message.content }}\
{% else %}<｜Assistant｜>{{ message.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}<｜Assistant｜><think>
{% endif %}"""

ZEPHYR = """\
{% for message in messages %}<|{{ message.role }}|>
{{ message.content }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""

LLAMA2 = """\
{% for message in messages %}\
{% if message.role == 'system' %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}\
{% if message.role == 'user' %}{{ bos_token + '[INST] ' + message.content + ' [/INST]' }}\
{% else %}{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}"""


def byte_level(
    template: str,
    *,
    eos: str,
    special: list[str],
    bos: str | None = None,
    pad: str | None = None,
    plain: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a chat template, as GPT-2, Llama 3, Qwen and DeepSeek have; it can encode any text.

    `plain` are added tokens that are not declared special.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    controls = dict.fromkeys([*([bos] if bos else []), eos, *([pad] if pad else []), *special])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in controls])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        chat_template=template,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def sentencepiece(template: str) -> PreTrainedTokenizerFast:
    """A BPE over characters with bytes as a fallback and a blank before the first word, as Llama 2 and Mistral have."""
    characters = ["▁", *map(chr, range(33, 127)), "\n"]
    words = ["▁t", "th", "▁th", "▁a", "in", "er", "▁s", "or"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters, *words]
    merges = [("▁", "t"), ("t", "h"), ("▁", "th"), ("▁", "a"), ("i", "n"), ("e", "r"), ("▁", "s"), ("o", "r")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in tokens[:3]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


FORMATS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "chatml": lambda: byte_level(
        CHATML, eos="<|im_end|>", pad="<|endoftext|>", special=["<|im_start|>"], plain=("<tool_call>",)
    ),
    "llama3": lambda: byte_level(
        LLAMA3,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        pad="<|finetune_right_pad_id|>",
        special=["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", *(f"<|reserved_{i}|>" for i in range(8))],
    ),
    "mistral": lambda: byte_level(MISTRAL, bos="<s>", eos="</s>", pad="<pad>", special=["<unk>", "[INST]", "[/INST]"]),
    "gemma": lambda: byte_level(
        GEMMA, bos="<bos>", eos="<eos>", pad="<pad>", special=["<unk>", "<start_of_turn>", "<end_of_turn>"]
    ),
    "think": lambda: byte_level(
        THINK,
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        pad="<｜▁pad▁｜>",
        special=["<｜User｜>", "<｜Assistant｜>"],
        plain=("<think>", "</think>"),
    ),
    "pad_is_eos": lambda: byte_level(ZEPHYR, eos="</s>", pad="</s>", special=["<|user|>", "<|assistant|>"]),
    "llama2": lambda: sentencepiece(LLAMA2),
}
END_OF_TURN = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "mistral": "</s>",
    "gemma": "<end_of_turn>",
    "think": "<｜end▁of▁sentence｜>",
    "pad_is_eos": "</s>",
    "llama2": "</s>",
}


@pytest.fixture(scope="session")
def hf_tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """A Hugging Face tokenizer of each chat format."""
    return {name: make() for name, make in FORMATS.items()}


@pytest.fixture(scope="session", params=sorted(FORMATS))
def chat_format(request: pytest.FixtureRequest) -> str:
    """Each chat format in turn."""
    return request.param


@pytest.fixture(scope="session")
def chat(chat_format: str, hf_tokenizers: dict[str, PreTrainedTokenizerFast]) -> ChatTokenizer:
    """The tokenizer of each chat format in turn."""
    return ChatTokenizer(hf_tokenizers[chat_format], CONTEXT)


@pytest.fixture(scope="session")
def end_of_turn() -> dict[str, str]:
    """The token that closes an assistant's turn, by chat format."""
    return END_OF_TURN


@pytest.fixture(scope="session")
def chatml(hf_tokenizers: dict[str, PreTrainedTokenizerFast]) -> ChatTokenizer:
    """The ChatML tokenizer."""
    return ChatTokenizer(hf_tokenizers["chatml"], CONTEXT)


def save_models(
    shapes: Shapes, tmp_path_factory: pytest.TempPathFactory, hf_tokenizers: dict[str, PreTrainedTokenizerFast]
) -> dict[str, str]:
    from transformers import AutoModelForCausalLM

    folders: dict[str, str] = {}
    for name, (chat_format, configure) in shapes.items():
        tokenizer = hf_tokenizers[chat_format]
        folder = tmp_path_factory.mktemp("models") / name
        config = configure(
            vocab_size=len(tokenizer),
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            # Far from 0, so that no two weights give nearly equal answers.
            initializer_range=0.2,
        )
        with torch.random.fork_rng():
            torch.manual_seed(len(folders))
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        # Loading may change a tokenizer's state; the session's own stays as it was made.
        copy.deepcopy(tokenizer).save_pretrained(folder)
        folders[name] = str(folder)
    return folders


@pytest.fixture(scope="session")
def model_folders(
    tmp_path_factory: pytest.TempPathFactory, hf_tokenizers: dict[str, PreTrainedTokenizerFast]
) -> dict[str, str]:
    """A Hugging Face folder of each architecture: random weights as safetensors, configuration, tokenizer."""
    return save_models(SHAPES, tmp_path_factory, hf_tokenizers)


@pytest.fixture(scope="session", params=sorted(SHAPES))
def model_folder(request: pytest.FixtureRequest, model_folders: dict[str, str]) -> str:
    """The folder of each architecture in turn."""
    return model_folders[request.param]


@pytest.fixture(scope="session")
def unshareable_folders(
    tmp_path_factory: pytest.TempPathFactory, hf_tokenizers: dict[str, PreTrainedTokenizerFast]
) -> dict[str, str]:
    """The folders of models that no row of several completions can be shown to."""
    return save_models(UNSHAREABLE, tmp_path_factory, hf_tokenizers)


@pytest.fixture(scope="session")
def llama(model_folders: dict[str, str]) -> str:
    """The folder of the Llama-shaped model."""
    return model_folders["llama"]


@pytest.fixture(scope="session")
def warm_adapter(llama: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a LoRA adapter on the Llama-shaped model whose weights are far from doing nothing."""
    return save_adapter(llama, tmp_path_factory.mktemp("adapters") / "warm", "all-linear")


@pytest.fixture(scope="session")
def warm_outer_adapter(llama: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One that reaches outside of the decoder layers."""
    targets = ["q_proj", "embed_tokens", "lm_head"]
    return save_adapter(llama, tmp_path_factory.mktemp("adapters") / "outer", targets)


def save_adapter(llama: str, folder: Path, target_modules: Any) -> str:
    from judgelit.models.backbone import Backbone
    from judgelit.models.lora import LoRA

    model: Any = Backbone(llama, lora=LoRA(r=4, alpha=8, target_modules=target_modules)).build()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Where a Trainer may write."""
    return tmp_path / "run"
