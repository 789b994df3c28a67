"""The toy language as a JSGF grammar, for speech recognizers that listen for one language only."""

import re

from data_pipelines.toyworld.language import CLAUSES, REQUESTS, slot_values, spoken_templates


def jsgf_grammar() -> str:
    """JSGF text whose public rule `<sentence>` covers every sentence that the toy world speaks.

    It covers more: slots are free of each other ("one comes after nine"), and captions have one to three clauses.
    """
    lines = ["#JSGF V1.0;", "grammar toyworld;"]
    for slot, values in slot_values().items():
        lines.append(_rule(slot, values))
    for name, templates in spoken_templates().items():
        lines.append(_rule(name, [_with_rules(template) for template in templates]))
    lines.append(_rule("clause", dict.fromkeys(_with_rules(clause) for clause in CLAUSES)))
    lines.append("<caption> = <clause> [ and <clause> [ and <clause> ] ];")
    lines.append(_rule("request", [request.strip() for request in REQUESTS]))
    names = ["<caption>", "<request> <caption>", *(f"<{name}>" for name in spoken_templates())]
    lines.append("public <sentence> = " + " | ".join(names) + ";")
    return "\n".join(lines) + "\n"


def _rule(name: str, alternatives) -> str:
    return f"<{name}> = " + " | ".join(alternatives) + ";"


def _with_rules(template: str) -> str:
    return re.sub(r"\{(\w+)\}", r"<\1>", template)
