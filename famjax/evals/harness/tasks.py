"""Names of the harness's tasks for what the paper reports, and for long contexts.

`famjax eval --lm-eval paper-gpt3` means all tasks of that list. The names are those of lm-eval 0.4.13.
"""

# The GPT-3 tasks of the paper (its ranked and its generated ones, tables 1 and 11). Winograd is the harness's WSC273;
# StoryCloze needs the files that its authors hand out on request.
RANKED = (
    "anli_r1", "anli_r2", "anli_r3", "arc_challenge", "arc_easy", "boolq", "cb", "copa", "hellaswag", "multirc",
    "openbookqa", "piqa", "race", "record", "rte", "storycloze_2016", "wic", "winogrande", "wsc273",
)  # fmt: skip
GENERATED = ("lambada_openai", "nq_open", "squadv2", "triviaqa", "webqs")

LISTS = {
    "paper-gpt3": RANKED + GENERATED,
    "paper-gpt3-ranked": RANKED,
    "paper-gpt3-generated": GENERATED,
    "long": (
        "ruler", "babilong", "longbench", "infinitebench", "scrolls_narrativeqa", "scrolls_qasper", "scrolls_quality",
    ),
}  # fmt: skip


def expand(names: str) -> list[str]:
    """`paper-gpt3,wikitext` to the names of single tasks or groups, each once, in this order."""
    found = [one for name in names.split(",") if name.strip() for one in LISTS.get(name.strip(), (name.strip(),))]
    return list(dict.fromkeys(found))
