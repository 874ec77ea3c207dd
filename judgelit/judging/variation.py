"""Draw the role, the criteria and the form of the judgment apart from the template's text.

The recipe's judge prompts vary in role, language, criteria and output format (RISE-Judge, arXiv 2502.11689). A template
names one of each. `vary` draws others of the same language, so that a few templates give many prompts. Evaluation asks
with the templates alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from judgelit.judging.template import Language, Template, draw, variables

_MORE: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "role": (
            "You are a careful examiner who reads both answers twice before deciding.",
            "You are an expert of the subject who is asked for a second opinion.",
            "You asked the question yourself and must choose the answer that you will rely on.",
            "You are a strict quality controller.",
        ),
        "criteria": (
            "correctness above all, then completeness, then clarity",
            "use to the person who asked, without errors and invented facts",
            "sound reasoning at each step, and a right conclusion",
            "truth, safety, and exactly what was asked",
        ),
        "format": (
            "numbered points, each about both answers, then the verdict",
            "strengths and weaknesses of each answer under a heading, then the verdict",
            "table of the criteria with a short note on each answer, then the verdict",
            "two short paragraphs, one about each answer, then the verdict",
            "a mark out of 10 for each answer and criterion with its reason, then the verdict",
            "the point that decides the comparison, then the checks that support it, then the verdict",
        ),
    },
    "zh": {
        "role": (
            "你是一位细心的审阅者，总要把两个回答各读两遍再作决定。",
            "你是该领域的专家，受邀给出第二意见。",
            "问题正是你提出的，你必须选出自己要采用的回答。",
            "你是一名严格的质量检查员。",
        ),
        "criteria": (
            "正确第一，其次完整，再次清楚",
            "对提问者确有帮助，没有错误和编造的内容",
            "每一步推理都站得住，结论正确",
            "真实、安全，并且恰好做到所要求的事",
        ),
        "format": (
            "编号列出要点，每点都谈到两个回答，最后给出结论",
            "分标题列出每个回答的优点和缺点，最后给出结论",
            "以表格逐条对照各项标准并作简短说明，最后给出结论",
            "两个简短段落分别评论两个回答，最后给出结论",
            "按每项标准给两个回答打分（满分10分）并说明理由，最后给出结论",
            "先指出决定性的差别，再列出支持它的核查，最后给出结论",
        ),
    },
}


def vary(template: Template, templates: Mapping[str, Template], key: str, seed: int) -> Template:
    """The template with role, criteria and format drawn at random, each apart from the others.

    They are drawn from the values of all templates of its language and from a short list. A field that the template's
    text does not use stays as it is, since another value would change nothing in the prompt.

    Args:
        template: The drawn template.
        templates: All templates that may be drawn.
        key: What the draw is for, such as a pair's id. The same key and seed draw the same values.
        seed: Seed of the draw.
    """
    used = variables(template.body)
    same_language = [other for other in templates.values() if other.language == template.language]
    drawn: dict[str, Any] = {}
    for field, more in _MORE[template.language].items():
        if field in used:
            values = {getattr(other, field) for other in same_language} | {*more}
            drawn[field] = draw(sorted(values), f"{field}/{key}", seed)
    return replace(template, **drawn)
