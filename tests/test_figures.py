"""Figures in README and docs are those of the files that the scripts in `launch/studies/` write."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.studies import script
from tests.test_docs import ROOT, text


@pytest.fixture(scope="module")
def readme() -> str:
    """README in one line."""
    return " ".join(text(ROOT / "README.md").split())


def results(name: str) -> Any:
    """A results file of docs/."""
    return json.loads(text(ROOT / f"docs/{name}.json"))


def test_quickstart_in_the_readme(readme: str) -> None:
    """Mean and range over three trainings of the exact match after 256 and 1,024 blocks; the minutes are the page's."""
    page, found = " ".join(text(ROOT / "docs/quickstart.md").split()), results("quickstart")
    for name, row, blocks, words in (
        ("AMD EPYC", "fam", 256, r"recalls (\d+)% of the keys after 256 blocks \((\d+)% to (\d+)%\)"),
        ("AMD EPYC", "fam", 1024, r"and (\d+)% after 1,024 \((\d+)% to (\d+)%\)"),
        ("AMD EPYC, gated updates", "gated", 1024, r"suffice for (\d+)% after 1,024 \((\d+)% to (\d+)%;"),
    ):
        exact = [seed[found[name]["blocks"].index(blocks)] for seed in found[name]["rows"][row]]
        assert len(exact) == 3
        said = [int(number) for number in re.search(words, readme).groups()]
        assert said == [round(100 * number) for number in (sum(exact) / 3, min(exact), max(exact))]
    minutes = re.search(r"side by side in ([\d.]+) minutes and the evaluation took ([\d.]+\d)", readme)
    assert all(f"{number} minutes" in page for number in minutes.groups())


def test_a_million_bytes_in_the_readme(readme: str) -> None:
    """Keys that three seeds of each recipe recall after a million bytes."""
    runs = results("memory")
    for prefix, words in (("long_", "{} of {} keys after a million bytes"),
                          ("gate_", "three seeds recall {} of {} after a million bytes")):  # fmt: skip
        last = [run["recall"][-1] for name, run in runs.items() if name.startswith(prefix)]
        assert len(last) == 3 and {one["filler_blocks"] for one in last} == {16384}
        right = sum(round(one["exact_match"] * one["documents"]) for one in last)
        assert words.format(right, sum(one["documents"] for one in last)) in readme


def test_depths_in_memory() -> None:
    """Cells of the keys at any depth, and of the newest key, which are the product of lengths, depths and seeds."""
    page, runs = " ".join(text(ROOT / "docs/memory.md").split()), results("memory")
    cells = lambda kind, task: [
        (cell["value"], name) for name, run in runs.items() if name.startswith(kind) for cell in run["depths"][task]
    ]
    good = lambda found: sum(value >= 0.9 for value, _ in found)
    depth, newest, plain = (
        cells("gate_", "passkey_depth"),
        cells("gate_", "passkey_newest"),
        cells("quiet_", "passkey_newest"),
    )
    assert len(depth) == len(newest) == len(plain) == 60
    assert f"(four lengths, five depths, three seeds), {good(depth)} are at 0.90 or more" in page
    assert {(value, name[-1]) for value, name in depth if value < 0.9} == {(0.85, "2")}
    assert f"recalled in {good(newest)} of 60 cells with 0.90 or more; the lowest is {min(newest)[0]:.2f}" in page
    assert f"without it {good(plain)} of 60 cells are at 0.90 or more" in page


def test_blocks_of_1024_in_memory() -> None:
    """Keys of all seeds after 256 blocks; of each seed after fewer, and how many of its keys the worst loses."""
    page, runs = " ".join(text(ROOT / "docs/memory.md").split()), results("memory")
    seeds = [{row["filler_blocks"]: row for row in runs[f"block1024_seed{n}"]["recall"]} for n in range(3)]
    right = [round(seed[256]["exact_match"] * seed[256]["documents"]) for seed in seeds]
    assert f"the three seeds recall {sum(right)} of {sum(seed[256]['documents'] for seed in seeds)} keys there" in page
    assert all(seed[blocks]["exact_match"] == 1 for seed in seeds for blocks in (1, 4, 16))
    assert right[0] == 64 and round(1 - right[1] / 64, 1) == 0.3 and min(right) == right[1]


def test_keys_by_name_in_memory() -> None:
    """New and first values at the trained length and at four times it, the mean over three seeds and the range."""
    page, found = " ".join(text(ROOT / "docs/memory.md").split()), results("rewritten")["AMD EPYC"]
    first, new = (found["tables"]["new values of a key"][at] for at in "01")
    ranged = script("pages").ranged
    of = lambda values: ranged(values).replace("-", " to ")
    mean = lambda values: f"{sum(values) / 3:.2f}"
    assert found["seeds"] == len(new["512"]) == 3
    assert f"Of new values {of(new['512'])} are recalled in documents of 512 tokens, of first values" in page
    assert f"of first values {mean(first['512'])}. With two keys {of(found['tables']['pairs']['2']['512'])}" in page
    assert f"at four times it {mean(new['2048'])} against {mean(first['2048'])}, since" in page
    gated = results("rewritten")["AMD EPYC, gated updates"]["tables"]
    new = {
        length: [f"{value:.2f}" for value in gated["new values of a key"]["1"][length]] for length in ("512", "2048")
    }
    (one, bad, two), (far, _, further) = new["512"], new["2048"]
    assert f"new values {one} and {two} at 512 tokens, {far} and {further} at 2,048." in page
    longer = results("rewritten")["AMD EPYC, gated updates, 1,600 steps"]["tables"]
    old, new = (longer["new values of a key"][at] for at in "01")
    rounded = lambda values: [f"{value:.2f}" for value in values]
    (one, _, two), (first_one, first_bad, first_two) = rounded(new["8192"]), rounded(old["8192"])
    assert f"{one} and {two} of the new values in documents of 8,192 tokens" in page
    assert f"{first_one} and {first_two} of the first ones, and all but one in two hundred with two keys" in page
    assert [longer["pairs"]["2"]["8192"][seed] for seed in (0, 2)] == [1.0, 0.995]
    assert f"overwrite: {bad} of its new values at 512 tokens, {rounded(new['512'])[1]} after 1,600 steps" in page
    assert first_bad >= max(first_one, first_two)
    more = results("rewritten")["AMD EPYC, gated updates, 1,600 steps, two more seeds"]["tables"]
    old, new = (more["new values of a key"][at] for at in "01")
    (one, two), (far, further) = rounded(new["512"]), rounded(new["8192"])
    assert f"recall {one} and {two} of the new values in documents of 512 tokens, {far} and {further} in" in page
    assert rounded(old["8192"]) == ["0.89"] * 2
    kept = [after / before for found in (longer, more) for values in [found["new values of a key"]["1"]]
            for before, after in zip(values["512"], values["8192"], strict=True)]  # fmt: skip
    assert sorted(kept)[0] < 0.2 and sorted(kept)[1] > 0.9  # seed 1 and the four others


def test_the_published_model_in_the_readme(readme: str) -> None:
    """Pass keys of the trained SmolLM2 and of its import; what WikiText costs."""
    shown = results("smollm2")
    recall, imported = shown["A window of 128 tokens, all offsets"], shown["The import with five segments, AMD EPYC"]
    ((*_, last),), (none,) = recall["rows"]["wide"], imported["rows"]["fam_imported"]
    assert recall["blocks"][-1] == 64 and f"recalls {last:.0%} of the pass keys after 64 blocks" in readme
    far = shown["A window of 128 tokens, far, 16 offsets"]
    right = sum(round(16 * exact) for exact in far["rows"]["wide"][0])
    assert far["blocks"] == [128, 256] and f"and {right} of {2 * far['documents']} after 128 and 256" in readme
    assert not any(none[imported["blocks"].index(8) :])
    page, twin = text(ROOT / "docs/smollm2.md"), shown["The twin trained in two stages, all offsets"]
    ((*first, of_four, of_eight, _, _, of_64),) = twin["rows"]["twin_keeps"]
    assert (
        first == [1.0] * 3
        and of_eight == of_64 == 0
        and f"up to 2 blocks, {of_four:.2f} after" in " ".join(page.split())
    )
    assert "recalls none after eight" in " ".join(readme.split())
    kept = shown["AMD EPYC, all offsets"]["rows"]["keeps"][0][twin["blocks"].index(8) :]
    assert f"where `keeps` recalls {sum(round(32 * exact) for exact in kept)}" in " ".join(page.split())
    for name, interval in (("second", "0.72 to 0.95"), ("third", "0.68 to 0.93")):
        (of_lengths,) = shown[f"The {name} seed, two stages, all offsets"]["rows"]["keeps"]
        right = sum(round(32 * exact) for exact in of_lengths)
        said = f"recalls {right} of 256 keys at all offsets, {right / 256:.2f}"
        assert said in " ".join(page.split())
        assert f"and {of_lengths[-1]:.2f} ({interval}) after 64 blocks" in " ".join(page.split())
    pages = results("smollm2_benchmarks")["A window of 128 tokens"]
    bits = {name: one["value"] for name, one in pages["wikitext"]["bits_per_byte"].items()}
    assert f"at a cost of {bits['wide'] - bits['fam_imported']:.2f} bits per byte on WikiText" in readme


def test_recall_by_name_of_the_published_model() -> None:
    """What FAM recalls of the block before, in lists of random order, and of sentences."""
    shown, page = results("smollm2_benchmarks"), " ".join(text(ROOT / "docs/smollm2.md").split())
    away = {name: shown[name]["mqar"]["1"] for name in ("Words by name", "Words by eight names", "Facts in sentences")}
    four, eight = away["Words by name"], away["Words by eight names"]["named"]
    said = {name: f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for name, one in four.items()}
    assert f"`named` recalls {said['named']} of the words, of four names and of eight" in page
    assert f"{eight['value']:.2f} ({eight['low']:.2f} to {eight['high']:.2f})" == said["named"]
    assert f"`listed` {said['listed']}" in page and f"`unordered` {said['unordered']}" in page
    told = away["Facts in sentences"]["asked"]
    assert f"`asked` recalls {told['value']:.2f} ({told['low']:.2f} to {told['high']:.2f})" in page


def test_facts_in_books_of_the_published_model(readme: str) -> None:
    """What is recalled from outside of the window, with FAM and without, and in longer texts."""
    shown, page = results("smollm2_benchmarks"), " ".join(text(ROOT / "docs/smollm2.md").split())
    away = [shown[f"Facts in unseen books, {what}"]["babi"]["outside"]["long"]
            for what in ("512 tokens", "512 tokens, without FAM", "1,024 tokens", "4,096 tokens")]  # fmt: skip
    with_fam, without, in_1k, in_4k = (f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for one in away)
    assert away[0]["low"] > away[1]["high"]
    assert f"`long` recalls {with_fam} of the facts that have left the window" in page
    assert f"with FAM off it is right in {without} of these cases" in page
    assert f"in 1,024 tokens it recalls {in_1k}, in 4,096 {in_4k}," in page
    gated = [shown[f"Facts in unseen books, {what} tokens, gated updates"]["babi"]["outside"]["gated_long"]
             for what in ("512", "1,024", "4,096")]  # fmt: skip
    off = shown["Facts in unseen books, 4,096 tokens, gated updates, without FAM"]["babi"]["outside"]["gated_long"]
    of_gated = [f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for one in (*gated, off)]
    assert gated[2]["low"] > max(away[3]["high"], off["high"])
    says = "`gated_long`: {} in 512 tokens, {} in 1,024, and **{} in 4,096 tokens, 64 windows**"
    assert f"{says}; with FAM off it is right in {{}} of the last".format(*of_gated) in page
    paid = shown["Facts in books: WikiText, a window of 64 tokens"]["wikitext"]["bits_per_byte"]
    long, gated_long, imported = (f"{paid[name]['value']:.2f}" for name in ("long", "gated_long", "fam_imported"))
    says = f"`long` needs {long} bits per byte and `gated_long` {gated_long}, the import"
    assert f"{says} with the same window {imported}" in page
    near, far = (f"{away[at]['value']:.0%}" for at in (0, 3))
    front = " ".join(readme.split())
    assert f"recalls {near} beyond a window of 64 tokens in 512 tokens, and {far} in 4,096" in front
    assert f"with gated updates {gated[0]['value']:.0%} and {gated[2]['value']:.0%}" in front


def test_facts_of_the_model_gated_from_the_import() -> None:
    """What is recalled from outside of the window by length, and what the repaired language costs."""
    shown, page = results("smollm2_benchmarks"), " ".join(text(ROOT / "docs/smollm2.md").split())
    name = "Facts in unseen books, {} tokens, gated from the import"
    away = {what: shown[name.format(what)]["babi"]["outside"] for what in ("512", "1,024", "4,096")}
    ranged = lambda one: f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
    near, middle, far = (ranged(one["long"]) for one in away.values())
    assert f"`long` recalls {near} in 512 tokens, {middle} in 1,024 and {far} in 4,096" in page
    near, middle, far = (ranged(one["text"]) for one in away.values())
    assert f"`text` recalls {near} in 512 tokens, {middle} in 1,024 and {far} in 4,096" in page
    off = shown[f"{name.format('512')}, without FAM"]["babi"]["outside"]["text"]
    assert (
        f"with FAM off it is right in {ranged(off)} of these cases in 512" in page
        and off["high"] < away["512"]["text"]["low"]
    )
    paid = shown["Gated from the import: WikiText, a window of 64 tokens"]["wikitext"]["bits_per_byte"]["text"]
    low, high = f"{paid['low']:.2f}", f"{paid['high']:.2f}"
    assert f"`text` needs {paid['value']:.2f} bits per byte ({low} to {high}; 20 pages)" in page


def test_fam_beside_segments() -> None:
    """With segments from the start it is learned by one of nine trainings, and by all nine if it is learned first."""
    found, page = results("segments")["AMD EPYC"], " ".join(text(ROOT / "docs/ablations.md").split())
    beyond = {
        kind: [seed[found["blocks"].index(16) :] for m in (1, 2, 3) for seed in found["rows"][f"{name} {m}"]]
        for kind, name in {"start": "gated FAM, M =", "then": "gated FAM, M = 0, then", "bswa": "BSWA, M ="}.items()
    }
    assert [len(seeds) for seeds in beyond.values()] == [9, 9, 9]
    assert sum(max(seed) > 0 for seed in beyond["start"]) == 1 and max(map(max, beyond["bswa"])) == 0
    assert "one of nine such trainings recalls keys after 16 blocks and more" in page
    assert f"all nine recall at least {min(seed[-1] for seed in beyond['then']):.2f} after 1,024 blocks" in page
    longer = [f"{seed[-1]:.2f}" for seed in found["rows"]["gated FAM, M = 1, 1,800 steps"]]
    assert "the three seeds recall {}, {} and {} after 1,024 blocks".format(*longer) in page
    first = sum(seed[-1] for seed in found["rows"]["gated FAM, M = 0, then 1"]) / 3
    assert f"those with FAM first {first:.2f} on average" in page


def last(runs: list) -> list[float]:
    """Bits per byte over all positions, for each seed of a run in docs/texts.json."""
    return [one[-1]["bits_per_byte"] for one in runs]


def test_texts_in_the_readme(readme: str) -> None:
    """Bits per byte of gated FAM and the paper's against no memory, the mean over three seeds."""
    texts = results("texts")["900 steps"]["bits_per_byte"]
    gaps = {
        (read, kind): [
            ours[-1]["bits_per_byte"] - theirs[-1]["bits_per_byte"]
            for ours, theirs in zip(texts[read][kind], texts[read]["bswa_m0"], strict=True)
        ]
        for read in texts
        for kind in ("fam_m0", "gated_m0")
    }
    said = {at: f"{abs(sum(gap)) / 3:.2f}" for at, gap in gaps.items()}
    assert all(len(gap) == 3 for gap in gaps.values()) and max(gaps["heldout", "gated_m0"]) < 0
    assert f"better than no memory by {said['heldout', 'gated_m0']} bits per byte, with each of three seeds" in readme
    costs = f"it costs {said['joined', 'gated_m0']}, where the paper's update costs {said['joined', 'fam_m0']}"
    assert costs in readme and all(sum(gaps["joined", kind]) > 0 for kind in ("fam_m0", "gated_m0"))
    beside = results("texts")["900 steps, one memory segment"]["bits_per_byte"]["heldout"]
    segment, both = last(beside["bswa_m1"]), last(beside["gated_m1"])
    assert len(segment) == 3 and max(segment) < min(last(texts["heldout"]["fam_m0"])) and sum(both) > sum(segment)
    assert "gains less than one segment, and beside one, gated FAM gains nothing" in readme
    joined = results("texts")["900 steps, trained on texts of 1 to 64 documents"]["bits_per_byte"]
    gaps = [
        [ours["bits_per_byte"] - theirs["bits_per_byte"] for ours, theirs in zip(*rows, strict=True)]
        for read in joined
        for rows in zip(joined[read]["gated_m0"], joined[read]["bswa_m0"], strict=True)
    ]
    of_joined = [gap[-1] for gap in gaps[3:]]
    assert len(gaps) == 6 and max(map(max, gaps)) < 0  # every seed, every position
    assert f"trained on such texts, it gains {-sum(of_joined) / 3:.2f}" in readme


def test_texts_by_number_of_segments() -> None:
    """Gated FAM pays without segments and costs beside one and two, with each seed; two are worse than one, with twice
    the steps, too, and than gated FAM beside one."""
    page = " ".join(text(ROOT / "docs/texts.md").split())
    joined = [found for name, found in results("texts").items() if found.get("join") and "then" not in name]
    same = [found for found in joined if found["steps"] == 900 and found.get("block_size", 128) == 128]
    studies = [found["bits_per_byte"] for found in same]
    gaps, means = {}, {}
    for found in studies:
        for read, models in found.items():
            for name, gated in models.items():
                kind, segments = name.split("_m")
                base = last(models[f"bswa_m{segments}"])
                means[read, int(segments)] = sum(base) / 3
                if kind == "gated":
                    gaps[read, int(segments)] = [x - y for x, y in zip(last(gated), base, strict=True)]
    assert len(gaps) == 6 and all(len(gap) == 3 for gap in gaps.values())
    assert all(max(gap) < 0 for (_, segments), gap in gaps.items() if not segments)
    beside = [gap for (_, segments), gap in gaps.items() if segments]
    assert min(map(min, beside)) > 0 and {f"{sum(gap) / 3:.2f}" for gap in beside} == {"0.01"}
    assert "it costs about 0.01 bits per byte there, in the documents and joined, with each of three seeds" in page
    assert f"after 900 steps ({means['heldout', 2]:.3f} against {means['heldout', 1]:.3f})" in page
    assert means["joined", 2] > means["joined", 1]
    (long,) = (found["bits_per_byte"] for found in joined if found["steps"] == 1800)
    bswa, gated = ({read: last(long[read][name]) for read in long} for name in ("bswa_m1", "gated_m1"))
    second = last(long["heldout"]["bswa_m2"])
    assert f"({sum(second) / 3:.3f} against {sum(bswa['heldout']) / 3:.3f})" in page
    saved = [x - y for x, y in zip(second, gated["heldout"], strict=True)]
    assert min(saved) > 0 and f"by {sum(saved) / 3:.3f} after 1,800 steps, with each seed" in page
    costs = {read: [x - y for x, y in zip(gated[read], bswa[read], strict=True)] for read in long}
    cost = {read: f"{sum(each) / 3:.3f}" for read, each in costs.items()}
    least, most = min(costs["heldout"]), max(costs["heldout"])
    assert f"{cost['heldout']} after 1,800 steps ({-least:.3f} better to {most:.3f} worse by seed)" in page
    assert f"and {cost['joined']} joined, where it is 0.010 and 0.011 after 900" in page
    before = [f"{sum(gaps[read, 1]) / 3:.3f}" for read in ("heldout", "joined")]
    assert before == ["0.010", "0.011"]
    assert {f"{means[read, 1] - sum(bswa[read]) / 3:.2f}" for read in long} == {"0.24"}
    assert "gain both models about 0.24 bits per byte" in page


def test_texts_at_equal_bytes_of_memory() -> None:
    """A segment of short blocks is better than gated FAM without segments, with each seed."""
    page, name = " ".join(text(ROOT / "docs/texts.md").split()), "900 steps, trained on texts of 1 to 64 documents"
    all_of = {key: found["bits_per_byte"] for key, found in results("texts").items()}
    gaps = {}
    for read in ("heldout", "joined"):
        twin, fam = last(all_of[f"{name}, blocks of 64"][read]["bswa_m1"]), last(all_of[name][read]["gated_m0"])
        gaps[read] = [ours - theirs for ours, theirs in zip(fam, twin, strict=True)]
        if read == "heldout":
            longer = sum(last(all_of[f"{name}, one memory segment"][read]["bswa_m1"])) / 3
            assert f"this BSWA has {sum(twin) / 3:.3f} bits per byte" in page and sum(twin) / 3 < longer
            assert f"with a segment and blocks of 128 ({longer:.3f})" in page
    alone, joined = gaps["heldout"], gaps["joined"]
    said = [f"{number:.3f}" for number in (sum(alone) / 3, min(alone), max(alone), sum(joined) / 3)]
    assert min(alone + joined) > 0
    assert "{} less than gated FAM ({} to {} by seed), and {} less joined".format(*said) in page


FIRST = "trained on texts of 1 to 64 documents, no segment, then one"


def test_texts_of_fam_first() -> None:
    """Learned first, gated FAM gains over BSWA trained alike, with each seed, but not over BSWA with a segment
    throughout."""
    page = " ".join(text(ROOT / "docs/texts.md").split())
    both, longer = (
        results("texts")[f"{steps} steps, {FIRST}"]["bits_per_byte"] for steps in ("900 + 900", "600 + 1,200")
    )
    for one, says in (both, "gain {} over BSWA in the same two trainings ({} to {} by seed), and {} joined"), (
        longer, "600 steps and then 1,200 gain {} ({} to {} by seed), and {} joined"
    ):  # fmt: skip
        gains = {
            read: [x - y for x, y in zip(last(of["bswa_m0_then_m1"]), last(of["gated_m0_then_m1"]), strict=True)]
            for read, of in one.items()
        }
        alone, joined = gains["heldout"], gains["joined"]
        said = [f"{number:.3f}" for number in (sum(alone) / 3, min(alone), max(alone), sum(joined) / 3)]
        assert says.format(*said) in page and min(alone + joined) > 0
    throughout = results("texts")["1,800 steps, trained on texts of 1 to 64 documents"]["bits_per_byte"]["heldout"]
    ours, theirs = last(longer["heldout"]["gated_m0_then_m1"]), last(throughout["bswa_m1"])
    means = [sum(each) / 3 for each in (theirs, last(both["heldout"]["gated_m0_then_m1"]), ours)]
    assert "has {:.3f}, better than gated FAM first ({:.3f}, with 600 steps first {:.3f};".format(*means) in page
    costs = [x - y for x, y in zip(ours, theirs, strict=True)]
    said = [f"{number:.3f}" for number in (sum(costs) / 3, -min(costs), max(costs))]
    assert "the latter costs {}, {} better to {} worse by seed)".format(*said) in page
    worse = [sum(last(one["heldout"]["bswa_m0_then_m1"])) / 3 - means[0] for one in (both, longer)]
    assert f"BSWA itself is {worse[0]:.2f} worse in two" in page and f"({worse[1]:.2f} with 600 steps first)" in page


def test_learning_rates_of_mqar() -> None:
    """Both memories are best at the rate of the other trainings; DeltaNet with two of three seeds."""
    page = " ".join(text(ROOT / "docs/compare.md").split())
    found = results("compare")["Multi-query associative recall, up to 8 blocks, three learning rates"]["memories"]
    fam, deltanet = (list(one["lengths"][-1]["by_seed"].values()) for one in found)
    assert [one["name"] for one in found] == ["fam", "deltanet"] and min(fam) > 0.85
    assert {one["learning_rate"] for one in found} == {0.003} and "Both are best at 0.003" in page
    worst, *others = sorted(deltanet)
    assert others == [1.0, 1.0] and f"(both 1.00 in 32 blocks, the third {worst:.2f}, of a loss" in page
    losses = [[row["loss"] for row in one["learning_rates"]] for one in found]
    assert all(ours < theirs for ours, theirs in zip(*(row[:2] for row in losses), strict=True))
    assert min(row[2] for row in losses) > 1  # neither learns at 0.01


def test_comparisons_in_the_readme(readme: str) -> None:
    """State tracking, recall of pairs, and the pass key of several memories."""
    compared = results("compare")
    tracked = compared["Permutations of five (S5), 3,000 steps"]["memories"]
    of_four = {one["name"]: f"{one['lengths'][2]['value']:.0%}" for one in tracked}
    assert all(one["lengths"][2]["blocks"] == 4 for one in tracked)
    assert f"FAM is right for {of_four['fam']} of the states in documents of four blocks" in readme
    assert f"DeltaNet for {of_four['deltanet']}, over three seeds" in readme
    asked = compared["Multi-query associative recall, up to 8 blocks, 1,600 steps"]["memories"]
    (fam, _), (gated, last) = (
        (f"{one['lengths'][-1]['value']:.0%}", one["lengths"][-1]["blocks"]) for one in asked[:2]
    )
    assert [one["name"] for one in asked[:2]] == ["fam", "fam_gated"] and last == 32
    assert f"FAM trained on up to 8 blocks recalls {fam} in documents of 32, with gated updates {gated}" in readme
    recalled = {one["name"]: one["lengths"][-1] for one in compared["Pass key, 1,500 steps"]["memories"]}
    assert recalled["fam_gated"]["blocks"] == 64 and recalled["deltanet"]["value"] == 0
    assert f"they recall {recalled['fam_gated']['value']:.0%} after 64 blocks" in readme


@pytest.mark.parametrize(
    "name",
    [
        "bench_page", "benchmarks_page", "comparing", "memory_page",
        "plan_all", "recall_pages:ablations", "recall_pages:quickstart", "recall_pages:smollm2",
        "recall_pages:segments", "recall_pages:story", "rewritten", "serving", "texts_page",
    ],
)  # fmt: skip
def test_figures_of_a_page_are_those_of_its_results(name: str, tmp_path: Path) -> None:
    """Between its markers a page has what the script in `launch/studies/` writes from its JSON file."""
    module, _, one = name.partition(":")
    page = script(module).PAGES[one] if one else script(module).PAGE
    copy = page._replace(path=tmp_path / page.path.name)
    copy.path.write_text(text(page.path), encoding="utf-8")
    copy.write_lines(page.read())
    assert text(copy.path) == text(page.path)


def test_a_comparison_becomes_tables() -> None:
    """Costs, the mean over seeds with their range for each length, what diverged, and the tables of the last length."""
    lengths = [
        {"blocks": 1, "by_seed": {"0": 1.0, "1": 1.0}, "value": 1.0},
        {"blocks": 64, "by_seed": {"0": 0.5, "1": 0.75}, "value": 0.625},
    ]
    tables = [{"label": "distance", "rows": [
        {"length": length, "at": at, "n": 9, "value": value, "low": 0.25, "high": 1.0}
        for length, at, value in ((64, 0, 0.1), (4096, 0, 0.5), (4096, 1, 0.75))
    ]}]  # fmt: skip
    memory = {
        "name": "fam", "added_weights": 12, "weights": 1234, "state_bytes": 2560, "learning_rate": 1e-3, "steps": 10,
        "tokens": 100, "training_flops": 2.5e12, "lengths": lengths, "tables": tables, "curves": ["many"],
        "diverged": [{"seed": 2, "said": "at /some/where"}],
        "learning_rates": [{"rate": 1e-3, "loss": 0.25, "best": True}, {"rate": 1e-2, "loss": None, "best": False}],
    }  # fmt: skip
    found = {
        "version": "1", "task": "passkey", "metric": "exact match", "length": "tokens", "chance": 1e-5,
        "seeds": [0, 1, 2], "budget": {"steps": 10, "tokens": 100}, "block_size": 64, "memories": [memory],
    }  # fmt: skip
    comparing = script("comparing")
    kept = comparing.kept(found)
    assert "curves" not in kept["memories"][0] and "/some" not in str(kept)
    shown = "\n".join(comparing.PAGE.tables["comparisons"]({"One": kept, "Two": kept}))
    assert shown.count("**One** (passkey): exact match, chance 1e-05; blocks of 64; 10 steps of 10 tokens") == 1
    assert "over 3 seeds, and the range over them" in shown
    assert "| `fam` (1 diverged) | 1,234, 12 | 2.5 | 2.5 | 1.00 | 0.62 (0.50-0.75) |" in shown
    assert "| 1 block | 64 blocks |" in shown and "in documents of 4,096 tokens" in shown
    assert "| memory | 0 | 1 |" in shown and "| `fam` | 0.50 (0.25-1.00) | 0.75 (0.25-1.00) |" in shown
    assert "| memory | 0.001 | 0.01 |" in shown and "| `fam` | **0.250** | diverged |" in shown
