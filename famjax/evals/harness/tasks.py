"""Lists of the harness's tasks: those that the paper reports, and long-context tasks.

`famjax eval --lm-eval paper-gpt3` runs all tasks of that list. The names are those of lm-eval 0.4.13.
"""

# The GPT-3 tasks of the paper (ranked and generated, tables 1 and 11). Winograd is the harness's WSC273;
# StoryCloze needs files that its authors provide on request.
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
    """Expands lists: returns the harness's tasks and groups in `paper-gpt3,wikitext`, without duplicates, in order."""
    found = [one for name in names.split(",") if name.strip() for one in LISTS.get(name.strip(), (name.strip(),))]
    return list(dict.fromkeys(found))
