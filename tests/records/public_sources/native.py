"""Rows of public data sets in their own forms, from their documentation."""

from typing import Any


def talk(*contents: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]


def prm800k(
    problem: str, *steps: tuple[str, int | None], finish: str = "solution", generated: Any = None, reference: str = ""
) -> dict[str, Any]:
    """A rated solution of phase 2: steps with their ratings. The last one of `found_error` has no chosen completion."""
    rated = []
    for index, (text, rating) in enumerate(steps):
        ends = finish == "found_error" and index == len(steps) - 1
        completions = [{"text": text, "rating": rating, "flagged": None}]
        if ends:
            completions.append({"text": "another step", "rating": 1, "flagged": False})
        rated.append({"completions": completions, "human_completion": None, "chosen_completion": None if ends else 0})
    question = {
        "problem": problem,
        "ground_truth_solution": reference or None,
        "ground_truth_answer": "4",
        "pre_generated_steps": generated,
        "pre_generated_answer": "4",
        "pre_generated_verifier_score": 0.5,
    }
    return {
        "labeler": "l",
        "timestamp": "2023-01-22T04:34:27.052924",
        "generation": 9,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": question,
        "label": {"steps": rated, "total_time": 1, "finish_reason": finish},
    }


def wildguard(
    prompt: str, response: str | None, harm: str | None, refusal: str | None, adversarial: bool = False
) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "adversarial": adversarial,
        "response": response,
        "prompt_harm_label": harm,
        "response_refusal_label": refusal,
        "response_harm_label": "unharmful",
        "subcategory": "cyberattack",
    }


ROWS: dict[str, list[dict[str, Any]]] = {
    "skywork": [
        {"chosen": talk("q", "good"), "rejected": talk("q", "bad"), "source": "offsetbias"},
        {"chosen": talk("1", "2", "q", "good"), "rejected": talk("1", "2", "q", "bad"), "source": "helpsteer2"},
    ],
    "helpsteer2": [
        {
            "split": split,
            "prompt": prompt,
            "response_1": "bad",
            "response_2": "good",
            "preference_strength": strength,
            "preference_statement": "@Response 2 is better",
            "preference_elaboration": None,
            "three_most_similar_preferences": [{"statement": "s", "elaboration": "e", "strength": 1}],
            "all_preferences_unprocessed": [{"strength": 1, "justification": "j"}],
        }
        for split, prompt, strength in (
            ("train", "q", 2),
            ("train", "1\n<extra_id_1>Assistant\n2\n<extra_id_1>User\nq", 1),
            ("validation", "tied", 0),
        )
    ],
    "helpsteer3": [
        {
            "domain": "code",
            "language": "python",
            "context": talk("1", "2", "q"),
            "response1": "good",
            "response2": "bad",
            "overall_preference": -3,
            "individual_preference": [{"score": -3, "reasoning": "r", "feedback1": "f", "feedback2": "f"}],
        }
    ],
    "offsetbias": [{"instruction": "q", "output_1": "bad", "output_2": "good", "label": 2, "id": "offsetbias-1"}],
    "wildguardmix": [
        wildguard("how to harm", "I cannot.", "harmful", "refusal"),
        wildguard("how to cook", "I cannot.", "unharmful", "refusal", adversarial=True),
        wildguard("how to harm", "Do this.", "harmful", "compliance"),
        wildguard("how to cook", "Do that.", "unharmful", "compliance", adversarial=True),
        wildguard("a prompt alone", None, "harmful", None),
        wildguard("how to harm", "Perhaps.", "harmful", None),
    ],
    "prm800k": [
        prm800k("2+2?", ("Add.", 0), ("# Answer\n\n4", 1), reference="It is $4$."),
        prm800k("3+3?", ("Six.", -1), finish="found_error", generated=["Six.", "Or seven.\n\n# Answer\n\n7"]),
        prm800k("2+2?", ("Subtract.", -1), finish="found_error", generated=["Subtract.", "# Answer\n\n0"]),
        prm800k("2+2?", ("Multiply?", 0), ("Five.", -1), finish="found_error", generated="['Multiply?', 'Five.']"),
        prm800k("2+2?", ("Hm.", 1), finish="give_up"),
        prm800k("2+2?", ("Hm.", None), ("4", 1)),
    ],
    "math": [
        {
            "problem": "Half of one?",
            "level": "Level 1",
            "type": "Algebra",
            "solution": "It is $\\boxed{\\frac{1}{2}}$.",
            "responses": ["So \\boxed{\\dfrac12}.", "So \\boxed{2}.", "So \\boxed{0.5}.", "I do not know"],
        }
    ],
    "gsm8k": [
        {
            "question": "How many eggs?",
            "ground_truth": "3 + 3 = <<3+3=6>>6\nA: 6",
            "6b_finetuning": {"is_correct": True, "solution": "3+3\nA: 6"},
            "6b_verification": {"is_correct": False, "solution": "3*3\nA: 9"},
            "175b_finetuning": {"is_correct": True, "solution": "Six.\nA: 6"},
            "175b_verification": {"is_correct": True, "solution": "3+3\nA: 6"},
        },
        {"question": "How many hens?", "answer": "Two.\n#### 2", "response": "There are 2 hens."},
        {"question": "How many hens?", "answer": "Two.\n#### 2", "response": "There are 1,000 hens."},
    ],
    "ultrafeedback": [
        {
            "prompt": "q",
            "prompt_id": "same",
            "chosen": talk("q", good),
            "rejected": talk("q", "bad"),
            "messages": talk("q", good),
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        }
        for good in ("good", "fine", "good")
    ],
    "ultrafeedback-scores": [
        {
            "source": "evol_instruct",
            "instruction": "q",
            "models": ["a", "b", "c", "d"],
            "completions": [
                {
                    "model": "m",
                    "principle": "helpfulness",
                    "custom_system_prompt": "Be helpful.",
                    "response": text,
                    "annotations": {"helpfulness": {"Rating": "4"}},
                    "critique": "c",
                    "overall_score": score,
                    "fine-grained_score": 4.25,
                }
                for text, score in (("good", 8.5), ("bad", 2.0), ("fine", 8.5), (" ", 1.0))
            ],
            "correct_answers": ["None"],
            "incorrect_answers": ["None"],
        }
    ],
    "hh-rlhf": [
        {
            "chosen": "\n\nHuman: 1\n\nAssistant: 2\n\nHuman: q\n\nAssistant: good",
            "rejected": "\n\nHuman: 1\n\nAssistant: 2\n\nHuman: q\n\nAssistant: bad",
        }
    ],
    "nectar": [
        {
            "prompt": "\n\nHuman: 1\n\nAssistant: 2\n\nHuman: q\n\nAssistant: ",
            "answers": [
                {"answer": text, "model": "m", "rank": rank}
                for text, rank in (("second", 2.0), ("first", 1.0), ("third", 3.0))
            ],
            "turns": 2,
            "num_responses": 3,
            "source": ["lmsys-chat-1m", "flan"],
            "good_natured": True,
        }
    ],
}
ROWS["prm800k-math"] = ROWS["prm800k"]

PAIRS: dict[str, set[tuple[str, str, str]]] = {
    "skywork": {("q", "good", "bad")},
    "helpsteer2": {("q", "good", "bad"), ("tied", "bad", "good")},
    "helpsteer3": {("q", "good", "bad")},
    "offsetbias": {("q", "good", "bad")},
    "wildguardmix": {("how to harm", "I cannot.", "Do this."), ("how to cook", "Do that.", "I cannot.")},
    "prm800k": {
        ("2+2?", "Add.\n# Answer\n\n4", "Subtract.\n# Answer\n\n0"),
        ("2+2?", "Add.\n# Answer\n\n4", "Multiply?\nFive."),
    },
    "prm800k-math": {
        ("2+2?", right, wrong)
        for right in ("Add.\n# Answer\n\n4", "It is $4$.")
        for wrong in ("Subtract.\n# Answer\n\n0", "Multiply?\nFive.")
    },
    "math": {("Half of one?", right, "So \\boxed{2}.") for right in ("So \\boxed{\\dfrac12}.", "So \\boxed{0.5}.")},
    "gsm8k": {
        ("How many eggs?", "3+3\nA: 6", "3*3\nA: 9"),
        ("How many eggs?", "Six.\nA: 6", "3*3\nA: 9"),
        ("How many hens?", "There are 2 hens.", "There are 1,000 hens."),
    },
    "ultrafeedback": {("q", "good", "bad"), ("q", "fine", "bad")},
    "ultrafeedback-scores": {("q", "good", "bad"), ("q", "fine", "bad")},
    "hh-rlhf": {("q", "good", "bad")},
    "nectar": {("q", "first", "second"), ("q", "first", "third"), ("q", "second", "third")},
}
"""The question, the better and the worse answer of each pair of the rows (of a tie, in the order of the file)."""
