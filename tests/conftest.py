"""Fixtures of tiny models and tokenizers: each architecture and chat format, made once a session without download."""

import copy
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from judgelit.batches.tokenizer import ChatTokenizer
from tests.shapes import SHAPES, UNSHAREABLE, Shapes
from tests.whole_blocks import save_adapter

pytest_plugins = ["tests.training_fixtures"]

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

# No deadline: on a busy machine, single examples can be slow.
settings.register_profile("judgelit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("judgelit")

CONTEXT = 1024
CORPUS = [
    "Which answer is better? The first answer is right, since 6 + 6 = 12 and 12 + 3 = 15.",
    "The second answer says 25, which is wrong. Verdict: [[A]]",
    "user assistant system model question answer judge better worse left out characters",
    "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(i)",
]

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

# As DeepSeek-R1: drops earlier reasoning; the generation prompt opens the reasoning of the next turn.
THINK = """\
{{ bos_token }}{% for message in messages %}\
{% if message.role == 'system' %}{{ message.content }}\
{% elif message.role == 'user' %}<｜User｜>{{ message.content }}\
{% else %}<｜Assistant｜>{{ message.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}<｜Assistant｜><think>
{% endif %}"""

# In the manner of Qwen3: reasoning of turns before the last question is dropped, `enable_thinking` closes the next.
QWEN3 = """\
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""  # noqa: E501

QWEN3_PLAIN = ("<think>", "</think>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|repo_name|>")

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
    """Byte-level BPE tokenizer with a chat template, as in GPT-2, Llama 3, Qwen and DeepSeek. It can encode any text.

    Args:
        template: The chat template.
        eos: The end-of-sequence token.
        special: Further special tokens.
        bos: The beginning-of-sequence token.
        pad: The padding token.
        plain: Added tokens that are not special.
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
    """BPE tokenizer over characters with byte fallback and a space before the first word, as in Llama 2 and Mistral."""
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
    "qwen3": lambda: byte_level(
        QWEN3,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        special=["<|im_start|>"],
        plain=("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", *QWEN3_PLAIN),
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
    "qwen3": "<|im_end|>",
    "pad_is_eos": "</s>",
    "llama2": "</s>",
}


@pytest.fixture(scope="session")
def hf_tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """The Hugging Face tokenizer of each chat format, by name."""
    return {name: make() for name, make in FORMATS.items()}


@pytest.fixture(scope="session", params=sorted(FORMATS))
def chat_format(request: pytest.FixtureRequest) -> str:
    """The name of each chat format (parametrized)."""
    return request.param


@pytest.fixture(scope="session")
def chat(chat_format: str, hf_tokenizers: dict[str, PreTrainedTokenizerFast]) -> ChatTokenizer:
    """The tokenizer of each chat format (parametrized)."""
    return ChatTokenizer(hf_tokenizers[chat_format], CONTEXT)


@pytest.fixture(scope="session")
def end_of_turn() -> dict[str, str]:
    """The end-of-turn token of each chat format."""
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
            # Large weights, so that different weights give clearly different outputs.
            initializer_range=0.2,
        )
        with torch.random.fork_rng():
            torch.manual_seed(len(folders))
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        # Saving may change a tokenizer's state, so a copy is saved.
        copy.deepcopy(tokenizer).save_pretrained(folder)
        folders[name] = str(folder)
    return folders


@pytest.fixture(scope="session")
def model_folders(
    tmp_path_factory: pytest.TempPathFactory, hf_tokenizers: dict[str, PreTrainedTokenizerFast]
) -> dict[str, str]:
    """The Hugging Face folder of each architecture: random weights, configuration and tokenizer."""
    return save_models(SHAPES, tmp_path_factory, hf_tokenizers)


@pytest.fixture(scope="session", params=sorted(SHAPES))
def model_folder(request: pytest.FixtureRequest, model_folders: dict[str, str]) -> str:
    """The folder of each architecture (parametrized)."""
    return model_folders[request.param]


@pytest.fixture(scope="session")
def unshareable_folders(
    tmp_path_factory: pytest.TempPathFactory, hf_tokenizers: dict[str, PreTrainedTokenizerFast]
) -> dict[str, str]:
    """The folders of models that do not support the shared-prefix layout."""
    return save_models(UNSHAREABLE, tmp_path_factory, hf_tokenizers)


@pytest.fixture(scope="session")
def llama(model_folders: dict[str, str]) -> str:
    """The folder of the Llama-shaped model."""
    return model_folders["llama"]


@pytest.fixture(scope="session")
def warm_adapter(llama: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a LoRA adapter for the Llama-shaped model, with weights that clearly change its outputs."""
    return save_adapter(llama, tmp_path_factory.mktemp("adapters") / "warm")


@pytest.fixture(scope="session")
def warm_outer_adapter(llama: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of such an adapter that also covers embeddings and head, outside of the decoder layers."""
    targets = ["q_proj", "embed_tokens", "lm_head"]
    return save_adapter(llama, tmp_path_factory.mktemp("adapters") / "outer", targets)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A folder that a Trainer may write to."""
    return tmp_path / "run"


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Within `full_disk(room)`, no file of this process can grow beyond `room` bytes."""

    @contextmanager
    def limited(room: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
