"""Make training and held-out files from PandaLM: human-labelled pairs, and two teachers' judgments of them.

    python benchmarks/real_data.py --pandalm DIR --out DIR

DIR holds PandaLM's files: testset-v1.json (999 pairs, three human annotators), and gpt-3.5-turbo-testset-v1.json and
pandalm-7b-testset-v1.json (each teacher's verdict and one-sentence reason). The script writes

    sft.jsonl       teachers' judgments whose verdict equals the majority of the annotators
    dpo.jsonl       (right, wrong) judgments of one prompt, where one teacher is right and the other wrong
    held_out.jsonl  the pairs of a fifth of the instructions; the other two files do not contain them
"""

import argparse
import json
from pathlib import Path

from judgelit.batches.tokenizer import ChatTokenizer
from judgelit.judging.prompts import JudgePrompt, Templates, in_drawn_order, judge_prompts
from judgelit.records.files import write_records
from judgelit.records.reading import read_record
from judgelit.records.records import PreferenceExample, PreferencePair, SFTExample, swap_label
from judgelit.records.sources import FileSource, split_by_group

VERDICTS = {"1": "A", "2": "B"}


def read_pairs(folder: Path) -> dict[int, PreferencePair]:
    """The pairs of PandaLM's test set by the number of their row. Rows with a blank answer are left out."""
    pairs = {}
    for index, (at, row) in enumerate(FileSource(str(folder / "testset-v1.json")).rows()):
        if str(row["response1"]).strip() and str(row["response2"]).strip():
            pairs[index] = read_record(row, at, PreferencePair, at.removeprefix(f"{folder}/"))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pandalm", type=Path, required=True, help="folder of PandaLM's files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the written files")
    parser.add_argument("--tokenizer", default="nano", help="tokenizer that counts the prompt's tokens")
    parser.add_argument("--max-prompt-tokens", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    pairs = read_pairs(args.pandalm)
    teachers = {
        name: [
            (str(row[f"{key}_result"]), row[f"{key}_reason"]) for row in read(args.pandalm / f"{name}-testset-v1.json")
        ]
        for name, key in (("gpt-3.5-turbo", "gpt"), ("pandalm-7b", "pandalm"))
    }
    teacher_rows = {pair.id: {name: rows[index] for name, rows in teachers.items()} for index, pair in pairs.items()}
    usable = [pair for pair in pairs.values() if pair.label != "tie"]
    train, held_out = split_by_group(usable, 0.2, args.seed)

    tokenizer = ChatTokenizer.load(args.tokenizer)
    templates = Templates(seed=args.seed)
    prompts, report = judge_prompts(train, templates.load(), tokenizer, args.max_prompt_tokens, seed=args.seed)
    print(report)
    sft: list[SFTExample] = []
    dpo: list[PreferenceExample] = []
    for prompt in in_drawn_order(prompts, args.seed):
        judgments = {name: judgment(prompt, *teacher_rows[prompt.pair.id][name]) for name in teachers}
        right = [text for verdict, text in judgments.values() if verdict == prompt.pair.label]
        wrong = [text for verdict, text in judgments.values() if verdict == swap_label(prompt.pair.label)]
        meta = prompt.meta()
        sft += [SFTExample(prompt.messages, text, prompt.pair.id, meta) for text in right]
        dpo += [PreferenceExample(prompt.messages, good, bad, meta) for good in right for bad in wrong]
    for name, records in {"sft": sft, "dpo": dpo, "held_out": held_out}.items():
        write_records(args.out / f"{name}.jsonl", records)
        print(f"{len(records)} records in {args.out / name}.jsonl")


def read(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def judgment(prompt: JudgePrompt, result: str, reason: str) -> tuple[str | None, str]:
    """A teacher's verdict and text, with the answers' names in the order of the prompt."""
    verdict = VERDICTS.get(result)
    names = {"Response 1": "Answer A", "Response 2": "Answer B"}
    if prompt.order == "ba":
        verdict = None if verdict is None else swap_label(verdict)
        names = {"Response 1": "Answer B", "Response 2": "Answer A"}
    text = str(reason)
    for theirs, ours in names.items():
        text = text.replace(theirs, ours).replace(theirs.lower(), ours)
    return verdict, f"{text.strip()}\n\n[[{verdict}]]"


if __name__ == "__main__":
    main()
