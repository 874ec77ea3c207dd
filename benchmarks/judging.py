"""Compare judging of pairs in both orders with generation by transformers.

    python benchmarks/judging.py --model DIR --data FILE --steps 5 [--pairs 100] [--max_new_tokens 64] [--batch 40]
        [--peer batched|continuous|one]

FILE holds preference pairs; the prompts use the default template. The pairs are split into --steps chunks. Two
processes take turns, one chunk a turn: judgelit's LocalEngine (--batch texts at once), and a peer:

- batched: `model.generate` on left-padded batches of prompts of similar length. The batch size is the fastest of
  PEER_BATCHES on a chunk of its own before the first turn.
- continuous: `model.generate_batch`, the continuous batching of transformers.
- one: `model.generate`, one prompt at a time.

Both decode greedily in float32 from the same prompt ids. Against `one`, LocalEngine stops at the verdict, as in
`judgelit evaluate`, and a text counts as equal if it equals the peer's text up to the verdict. Against the other peers
it writes each text to its end, as they do.

The lines before the claim say how our time is divided, and which fraction of its floor each part reaches:

- prefill (prompts): the necessary operations at the rate of matrix products of a layer's size. Common beginnings of
  prompts count once.
- decode (one step): the longer of two times, that of the operations, and that of reading weights, keys and values at
  the rate of a matrix-vector product.

Both rates are measured in the same turn. The last line is the claim.
"""

import sys
import time
from collections import defaultdict
from typing import Any

import side_by_side

WARMUP_PAIRS = 1
PEER_BATCHES = (4, 8, 16, 32)
"""Batch sizes among which the peer `batched` takes the fastest."""
TRIAL_PAIRS = 16
"""Pairs on which it tries them, each in both orders."""


def main() -> None:
    parser = side_by_side.argument_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=100, help="pairs to judge, each in both orders")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="maximum length of a judgment in tokens")
    parser.add_argument("--peer", choices=("batched", "continuous", "one"), default="batched")
    parser.set_defaults(warmup=1, batch=40)
    args = parser.parse_args()
    if args.role != "parent":
        side_by_side.run_worker(args, ours, theirs)
        return
    times, parts, texts = [], defaultdict(float), []
    for mine, other in side_by_side.paired_steps(args.steps, args.warmup):
        times.append([mine["seconds"], other["seconds"]])
        texts += zip(mine["texts"], other["texts"], strict=True)
        for name, value in mine["parts"].items():
            parts[name] += value
        print(
            f"ours {mine['seconds']:.2f} s, theirs {other['seconds']:.2f} s, {len(mine['texts'])} prompts", flush=True
        )
    same = compare(texts)
    total = sum(ours for ours, _ in times)
    shares = {name: parts[name] / total for name in ("prefill", "decode")}
    shares["rest"] = 1 - sum(shares.values())
    reached = {name: parts[f"{name}_floor"] / parts[name] for name in ("prefill", "decode")}
    print("where our time goes: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    print("fraction of the floor reached: " + ", ".join(f"{name} {share:.1%}" for name, share in reached.items()))
    print(", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in same.items()))
    side_by_side.print_claim(
        f"judging {args.pairs} pairs in both orders, {args.max_new_tokens} new tokens at most, against {args.peer}",
        2.0 if args.peer == "one" else 1.5,
        times,
        smaller_is_better=False,
        same=same,
        time_shares=shares,
        floor_reached=reached,
    )


def compare(texts: list[tuple[str, str]]) -> dict[str, float]:
    """Shares of texts: equal up to the verdict, stopped at the verdict, with a verdict, with equal verdicts."""
    from judgelit.judging.verdict import concludes, parse

    count = len(texts)
    return {
        "texts_equal": sum(m == o or (concludes(m) and o.startswith(m)) for m, o in texts) / count,
        "stopped_at_verdict": sum(concludes(mine) for mine, _ in texts) / count,
        "with_verdict": sum(parse(mine) is not None for mine, _ in texts) / count,
        "verdicts_equal": sum(parse(mine) == parse(other) for mine, other in texts) / count,
    }


def chunks(args: Any, tokenizer: Any) -> list[list[Any]]:
    """The conversations of each turn, warm-up first."""
    from judgelit.judging.prompts import Templates, judge_prompts
    from judgelit.records.sources import read_pairs

    pairs = read_pairs(args.data)[: args.pairs]
    size = -(-len(pairs) // args.steps)
    parts = [pairs[:WARMUP_PAIRS]] * args.warmup + [pairs[start : start + size] for start in range(0, len(pairs), size)]
    room = tokenizer.context - args.max_new_tokens
    return [
        [prompt.messages for prompt in judge_prompts(part, Templates().load(), tokenizer, room)[0]] for part in parts
    ]


def ours(turns: side_by_side.Turns, args: Any) -> None:
    """Judge with judgelit's LocalEngine."""
    from judgelit.generation.engine import EngineSpec, load_engine
    from judgelit.generation.sampling import Sampling

    engine = load_engine(EngineSpec(args.model, batch_size=args.batch))
    sampling = Sampling(args.max_new_tokens, stop_at_verdict=args.peer == "one")
    parts = Parts(engine.model)
    for conversations in chunks(args, engine.tokenizer):
        turns.begin()
        began = time.perf_counter()
        parts.begin()
        answers = dict(engine.answer(conversations, sampling))
        seconds = time.perf_counter() - began
        texts = [answers[index][0].text for index in range(len(conversations))]
        turns.end(seconds=seconds, texts=texts, parts=parts.found())
    turns.begin()  # wait until the parent stops this process


def theirs(turns: side_by_side.Turns, args: Any) -> None:
    """Judge with the peer."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    from judgelit.batches.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer.load(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32").eval()
    settings = GenerationConfig(
        max_new_tokens=args.max_new_tokens,
        do_sample=False,
        eos_token_id=list(tokenizer.stop_ids),
        pad_token_id=tokenizer.pad_id,
    )
    parts = [[tokenizer.prompt_ids(messages) for messages in part] for part in chunks(args, tokenizer)]
    if args.peer == "batched":
        size = fastest_batch(model, [ids for part in parts[args.warmup :] for ids in part][: 2 * TRIAL_PAIRS], settings)

        def generate(prompts: list[list[int]]) -> list[list[int]]:
            return in_batches(model, prompts, settings, size)

    elif args.peer == "continuous":

        def generate(prompts: list[list[int]]) -> list[list[int]]:
            return continuously(model, prompts, settings)

    else:

        def generate(prompts: list[list[int]]) -> list[list[int]]:
            return in_batches(model, prompts, settings, 1)

    for prompts in parts:
        turns.begin()
        texts = [tokenizer.decode(ids) for ids in generate(prompts)]
        turns.end(texts=texts)
    turns.begin()  # wait until the parent stops this process


def in_batches(model: Any, prompts: list[list[int]], settings: Any, size: int) -> list[list[int]]:
    """The new ids of each prompt, generated in left-padded batches of prompts of similar length."""
    import torch

    made: list[list[int]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    ends = set(settings.eos_token_id)
    for start in range(0, len(by_length), size):
        batch = by_length[start : start + size]
        longest = len(prompts[batch[-1]])
        ids = [[settings.pad_token_id] * (longest - len(prompts[index])) + prompts[index] for index in batch]
        mask = [[0] * (longest - len(prompts[index])) + [1] * len(prompts[index]) for index in batch]
        found = model.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), generation_config=settings)
        for index, row in zip(batch, found[:, longest:].tolist(), strict=True):
            stop = next((place for place, token in enumerate(row) if token in ends), len(row))
            made[index] = row[:stop]
    return made


def fastest_batch(model: Any, prompts: list[list[int]], settings: Any) -> int:
    """The batch size of PEER_BATCHES that generates these prompts fastest."""
    seconds = {}
    for size in PEER_BATCHES:
        began = time.perf_counter()
        in_batches(model, prompts, settings, size)
        seconds[size] = time.perf_counter() - began
    best = min(seconds, key=seconds.__getitem__)
    shown = ", ".join(f"{size}: {took:.1f} s" for size, took in seconds.items())
    print(f"the peer's batch size is {best} ({shown})", file=sys.stderr, flush=True)
    return best


def continuously(model: Any, prompts: list[list[int]], settings: Any) -> list[list[int]]:
    """The new ids of each prompt, by the continuous batching of transformers."""
    found = model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False)
    ends = set(settings.eos_token_id)
    # The requests are named in the sequence of the prompts: req_0, req_1, ... of this call.
    outputs = sorted(found.values(), key=lambda one: int(one.request_id.rpartition("_")[2]))
    return [[token for token in one.generated_tokens if token not in ends] for one in outputs]


class Parts:
    """Seconds and floors of a model's two parts of generation, prefill and decode, measured with hooks."""

    def __init__(self, model: Any) -> None:
        from torch import nn

        self.body, self.head = model.base_model, model.get_output_embeddings()
        linear = [layer for layer in self.body.modules() if isinstance(layer, nn.Linear)]
        self.weights = sum(layer.weight.numel() for layer in linear)
        self.head_weights = self.head.weight.numel()
        config = model.config.get_text_config()
        self.size = config.hidden_size
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.channels = config.num_hidden_layers * config.num_attention_heads * head_size
        self.kept = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size
        self.body.register_forward_pre_hook(self._body_begins, with_kwargs=True)
        self.body.register_forward_hook(lambda *_: self._ends())
        self.head.register_forward_pre_hook(self._head_begins)
        self.head.register_forward_hook(lambda *_: self._ends())

    def begin(self) -> None:
        """Start to measure."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.operations: dict[str, float] = defaultdict(float)
        self.steps: list[tuple[float, float]] = []

    def found(self) -> dict[str, float]:
        """Seconds and floors since `begin`."""
        rate, bandwidth = self._rates()
        decode_floor = sum(max(4 * read / bandwidth, done / rate) for done, read in self.steps)
        floors = {"prefill_floor": self.operations["prefill"] / rate, "decode_floor": decode_floor}
        return {**self.seconds, **floors}

    def _body_begins(self, body: Any, args: Any, kwargs: dict[str, Any]) -> None:
        from judgelit.generation.kv_cache import KVCache

        attention = kwargs.get("judgelit_attention")
        self.kind = "decode" if isinstance(attention, KVCache) else "prefill"
        self.began = time.perf_counter()
        if attention is None:
            return  # the engine tests in the warm-up which layout the model supports
        tokens = kwargs["input_ids"].numel()
        seen = int(kwargs["position_ids"].sum()) + tokens
        operations = 2 * self.weights * tokens + 4 * self.channels * seen
        self.operations[self.kind] += operations
        if self.kind == "decode":
            head = self.head_weights
            self.steps.append((operations + 2 * head * tokens, self.weights + head + self.kept * seen))
        self.began = time.perf_counter()

    def _head_begins(self, head: Any, args: Any) -> None:
        if self.kind == "prefill":
            self.operations["prefill"] += 2 * self.head_weights * args[0].numel() // args[0].shape[-1]
        self.began = time.perf_counter()

    def _ends(self) -> None:
        self.seconds[self.kind] += time.perf_counter() - self.began

    def _rates(self) -> tuple[float, float]:
        """Operations a second of a matrix product of a layer's size, and bytes a second of a matrix-vector product."""
        import torch

        rows, matrix = torch.randn(1024, self.size), torch.randn(self.size, 4 * self.size)
        large = self.head.weight.detach()
        products = fastest(lambda: rows @ matrix)
        reading = fastest(lambda: large @ rows[0])
        return 2 * rows.numel() * matrix.shape[1] / products, 4 * large.numel() / reading


def fastest(work: Any, times: int = 10) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
