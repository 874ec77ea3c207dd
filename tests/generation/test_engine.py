"""Loading an engine: from every kind of folder, in each dtype, with the tokenizer that belongs to it."""

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import AutoModelForCausalLM

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.errors import UserError
from judgelit.generation.engine import EngineSpec, load_engine
from judgelit.generation.loading import NamedModel, templates_of
from judgelit.generation.local import LocalEngine
from judgelit.generation.sampling import Sampling
from judgelit.judging.kept_templates import keep_templates
from judgelit.judging.prompts import Templates
from judgelit.models import quantization
from judgelit.models.backbone import Backbone
from judgelit.models.lora import LoRA
from judgelit.runs.export import export_run
from judgelit.runs.trained_run import find_run
from judgelit.training.sft import SFTModule
from tests.support import short_templates
from tests.whole_blocks import save_adapter, widened

QUESTION = [{"role": "user", "content": "Is 6 + 6 = 12?"}]
OTHER_TEMPLATE = """\
{% for message in messages %}{% if message.role == 'user' %}OTHER {{ message.content }}<|im_start|>{% else %}\
{{ message.content }}{% endif %}{% endfor %}"""


def text(engine: LocalEngine) -> str:
    return dict(engine.answer([QUESTION], Sampling(max_new_tokens=8)))[0][0]


def prompt(engine: LocalEngine) -> str:
    return engine.tokenizer.raw_text(engine.tokenizer.prompt_ids(QUESTION))


def weights(engine: LocalEngine) -> dict[str, torch.Tensor]:
    return dict(engine.model.named_parameters())


@pytest.fixture
def own_template_adapter(warm_adapter: str, llama: str, tmp_path: Path) -> str:
    """The folder of an adapter with a tokenizer whose chat template differs from that of its base."""
    folder = tmp_path / "adapter"
    shutil.copytree(warm_adapter, folder)
    tokenizer = ChatTokenizer.load(llama).hf
    tokenizer.chat_template = OTHER_TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


class TestTokenizer:
    def test_that_of_an_adapter_is_used(self, llama: str, own_template_adapter: str) -> None:
        engine = load_engine(EngineSpec(own_template_adapter))
        assert prompt(engine) == "OTHER Is 6 + 6 = 12?<|im_start|>" != prompt(load_engine(EngineSpec(llama)))
        assert engine.tokenizer.context == ChatTokenizer.load(llama).context
        assert engine.name == own_template_adapter

    def test_a_base_without_template_does_not_matter(
        self, llama: str, own_template_adapter: str, tmp_path: Path
    ) -> None:
        base = tmp_path / "base"
        shutil.copytree(llama, base)
        (base / "chat_template.jinja").unlink()
        settings = Path(own_template_adapter) / "adapter_config.json"
        content = {**json.loads(settings.read_text()), "base_model_name_or_path": str(base)}
        settings.write_text(json.dumps(content))
        with pytest.raises(UserError, match="has no chat template"):
            load_engine(EngineSpec(str(base)))
        assert prompt(load_engine(EngineSpec(own_template_adapter))).startswith("OTHER ")

    def test_an_adapter_without_one_has_that_of_its_base(
        self, llama: str, warm_adapter: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("INFO"):
            engine = load_engine(EngineSpec(warm_adapter))
        assert prompt(engine) == prompt(load_engine(EngineSpec(llama)))
        assert f"that of its base {llama!r} is used" in caplog.text

    def test_a_template_or_tokenizer_of_the_caller_is_used(
        self, llama: str, own_template_adapter: str, tmp_path: Path
    ) -> None:
        (tmp_path / "own.jinja").write_text(
            "MINE {% for message in messages %}{{ message.content }}{% endfor %}", encoding="utf-8"
        )
        spec = EngineSpec(own_template_adapter, chat_template=str(tmp_path / "own.jinja"))
        assert prompt(load_engine(spec)) == "MINE Is 6 + 6 = 12?"
        tokenizer = ChatTokenizer.load(llama)
        assert load_engine(EngineSpec(own_template_adapter), tokenizer).tokenizer is tokenizer


def test_the_built_in_model_has_the_same_weights_in_every_command() -> None:
    before = load_engine(EngineSpec("nano")).identity
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert load_engine(EngineSpec("nano")).identity == before
    assert torch.equal(torch.rand(1), drawn)


class TestDtype:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_weights_have_the_chosen_dtype(self, llama: str, dtype: Any) -> None:
        assert {w.dtype for w in weights(load_engine(EngineSpec(llama, dtype))).values()} == {getattr(torch, dtype)}

    @pytest.mark.parametrize("saved", ["float32", "bfloat16"])
    def test_auto_is_the_saved_dtype_of_a_model_or_of_an_adapters_base(
        self, llama: str, warm_adapter: str, tmp_path: Path, saved: str
    ) -> None:
        folder = tmp_path / "model"
        shutil.copytree(llama, folder)
        AutoModelForCausalLM.from_pretrained(llama, dtype=getattr(torch, saved)).save_pretrained(folder)
        model = load_engine(EngineSpec(str(folder), "auto"))
        assert {w.dtype for w in weights(model).values()} == {getattr(torch, saved)}
        adapter = tmp_path / "adapter"
        shutil.copytree(warm_adapter, adapter)
        settings = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(folder)}))
        found = weights(load_engine(EngineSpec(str(adapter), "auto")))
        assert {w.dtype for name, w in found.items() if "lora_" not in name} == {getattr(torch, saved)}
        assert {w.dtype for name, w in found.items() if "lora_" in name} == {torch.float32}

    @pytest.mark.parametrize(
        ("device", "dtype", "expected"),
        [
            ("cpu", None, "float32"),
            ("cuda", None, "bfloat16"),
            ("mps", None, "bfloat16"),
            ("cuda", "float16", "float16"),
        ],
    )
    def test_by_default_it_is_the_saved_one_on_a_gpu_and_float32_on_a_cpu(
        self, llama: str, tmp_path: Path, device: str, dtype: Any, expected: str
    ) -> None:
        shutil.copytree(llama, tmp_path / "model")
        path = tmp_path / "model/config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "bfloat16"}))
        found = NamedModel.find(EngineSpec(str(tmp_path / "model"), dtype), torch.device(device))
        assert found.backbone.dtype == expected

    def test_auto_of_the_built_in_model(self) -> None:
        assert {w.dtype for w in weights(load_engine(EngineSpec("nano", "auto"))).values()} == {torch.float32}

    def test_auto_needs_a_dtype_in_the_configuration(self, llama: str, tmp_path: Path) -> None:
        shutil.copytree(llama, tmp_path / "model")
        path = tmp_path / "model/config.json"
        content = json.loads(path.read_text())
        content.pop("dtype")
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"dtype 'auto': found the dtype None .* choose one of them with --dtype"):
            load_engine(EngineSpec(str(tmp_path / "model"), "auto"))


class TestDevice:
    def test_the_cpu(self, llama: str) -> None:
        assert next(load_engine(EngineSpec(llama, device="cpu")).model.parameters()).device.type == "cpu"

    @pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpu:1", ""])
    def test_one_that_is_not_there(self, llama: str, device: str) -> None:
        with pytest.raises(UserError, match=f"^device: found '{device}', expected one that this machine has: auto, "):
            load_engine(EngineSpec(llama, device=device))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
    def test_a_gpu(self, llama: str, device: str) -> None:
        engine = load_engine(EngineSpec(llama, device=device))
        assert next(engine.model.parameters()).device == torch.device("cuda:0") and text(engine)


class TestQuantization:
    def test_a_whole_model_in_4_bits(self, llama: str, tmp_path: Path) -> None:
        engine = load_engine(EngineSpec(widened(llama, tmp_path / "wide"), quantization="nf4"))
        assert quantization.is_4bit(engine.model) and text(engine)

    def test_an_adapter_gets_the_4_bit_base_that_it_was_trained_on(self, llama: str, tmp_path: Path) -> None:
        adapter = save_adapter(widened(llama, tmp_path / "wide"), tmp_path / "adapter")
        engine: Any = load_engine(EngineSpec(adapter))
        assert not quantization.is_4bit(engine.model.get_base_model())
        quantization.write_note(Path(adapter))
        engine = load_engine(EngineSpec(adapter))
        assert quantization.is_4bit(engine.model.get_base_model())


class TestRun:
    """A run of `judgelit fit`: its folder, its checkpoint, and its own tokenizer."""

    @pytest.fixture
    def make_run(self, llama: str, tmp_path: Path) -> Any:
        """Saves a checkpoint of a model whose weights differ from those of its base, as `fit` does."""

        def make(**backbone: Any) -> tuple[Path, SFTModule]:
            root = tmp_path / "run"
            settings = {"name_or_path": llama, **backbone}
            lora = LoRA(**settings["lora"]) if "lora" in settings else None
            module = SFTModule(Backbone(**{**settings, "lora": lora}), torch.optim.AdamW)
            module.configure_model()
            with torch.no_grad():
                for weight in module.parameters():
                    if weight.requires_grad:
                        weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
            trainer = L.Trainer(accelerator="cpu", logger=False, max_steps=0, enable_model_summary=False)
            trainer.strategy.connect(module)
            trainer.save_checkpoint(root / "checkpoints/last.ckpt", weights_only=True)
            config = {
                "model": {"class_path": "judgelit.SFTModule", "init_args": {"backbone": settings}},
                "data": {"init_args": {"chat_template": str(tmp_path / "run.jinja")}},
            }
            (tmp_path / "run.jinja").write_text(OTHER_TEMPLATE, encoding="utf-8")
            (root / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
            return root, module

        return make

    @pytest.mark.parametrize("backbone", [{}, {"lora": {"r": 2}}], ids=["full", "lora"])
    @pytest.mark.parametrize("inside", ["", "checkpoints/last.ckpt"])
    def test_has_the_trained_weights_and_the_runs_template(
        self, make_run: Any, backbone: dict[str, Any], inside: str
    ) -> None:
        root, module = make_run(**backbone)
        engine = load_engine(EngineSpec(str(root / inside)))
        assert engine.name == str(root / inside)
        assert prompt(engine).startswith("OTHER ")
        trained = dict(module.model.named_parameters())
        assert weights(engine).keys() == trained.keys()
        assert all(torch.equal(weight, trained[name]) for name, weight in weights(engine).items())
        assert text(engine) == text(LocalEngine(module.model, engine.tokenizer, "trained"))  # type: ignore[arg-type]

    def test_keeps_its_judge_templates(self, make_run: Any, tmp_path: Path) -> None:
        root, _ = make_run()
        config = json.loads((root / "config.yaml").read_text())
        own = short_templates(tmp_path / "own")
        config["data"]["init_args"]["judge"] = {"templates": {"names": own.names, "folder": own.folder, "seed": 3}}
        (root / "config.yaml").write_text(json.dumps(config))
        found = templates_of(Templates(), EngineSpec(str(root)))
        assert (found.load(), found.seed) == (own.load(), 3)
        export_run(find_run(root), tmp_path / "judge")
        shutil.rmtree(tmp_path / "own")
        assert templates_of(Templates(), EngineSpec(str(tmp_path / "judge"))).load().keys() == {"short"}
        assert templates_of(Templates(["rise"]), EngineSpec(str(tmp_path / "judge"))) == Templates(["rise"])
        # The user's folder is gone: the model is written all the same.
        export_run(find_run(root), tmp_path / "again")
        assert (tmp_path / "again/config.json").exists() and not (tmp_path / "again/judge_templates").exists()

    @pytest.mark.parametrize("adapter", [False, True])
    def test_keeps_the_judge_templates_of_its_base(
        self, make_run: Any, llama: str, warm_adapter: str, tmp_path: Path, adapter: bool
    ) -> None:
        warm, own = tmp_path / "warm", short_templates(tmp_path / "own")
        shutil.copytree(warm_adapter if adapter else llama, warm)
        keep_templates(own.load(), warm)
        root, _ = make_run(**({"adapter": str(warm)} if adapter else {"name_or_path": str(warm)}))
        assert templates_of(Templates(), EngineSpec(str(root))).load() == own.load()

    def test_dtypes(self, make_run: Any) -> None:
        root, _ = make_run(dtype="bfloat16")
        for dtype, expected in (("auto", torch.bfloat16), ("float32", torch.float32)):
            assert {w.dtype for w in weights(load_engine(EngineSpec(str(root), dtype))).values()} == {expected}  # type: ignore[arg-type]

    def test_what_cannot_be_loaded_is_one_line(self, make_run: Any, tmp_path: Path) -> None:
        root, _ = make_run()
        with pytest.raises(UserError, match="quantization 'nf4': found a run that has trained the whole model"):
            load_engine(EngineSpec(str(root), quantization="nf4"))
        with pytest.raises(UserError, match="no such run"):
            load_engine(EngineSpec(str(tmp_path / "nowhere/last.ckpt")))
        config = json.loads((root / "config.yaml").read_text())
        config["model"]["init_args"]["backbone"]["trust_remote_code"] = True
        (root / "config.yaml").write_text(json.dumps(config))
        with pytest.raises(UserError, match="to run that code, set trust_remote_code to true"):
            load_engine(EngineSpec(str(root)))


def test_a_missing_model_is_one_line() -> None:
    with pytest.raises(UserError, match=r"'\./nowhere': no such folder"):
        load_engine(EngineSpec("./nowhere"))


@pytest.mark.parametrize("name", ["", " ", "base\0x", "x" * 300, "org/" + "x" * 300])
def test_a_name_that_no_model_can_have_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"^model: found '.*', expected a hub name, a folder or a checkpoint$"):
        EngineSpec(name)


@pytest.mark.parametrize("size", [0, -3])
def test_an_empty_batch_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=f"^batch_size: found {size}, expected 1 or more$"):
        EngineSpec("nano", batch_size=size)
