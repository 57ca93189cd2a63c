import csv
import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from lora_dist.cli.main import main
from lora_dist.config import DataSettings
from lora_dist.data.e2e import load_split, parse_mr
from lora_dist.errors import UserError
from lora_dist.evaluation.scoring import score_run
from lora_dist.files import write_json, write_jsonl, write_text
from lora_dist.metrics import suite as metrics
from lora_dist.metrics.readers import read_sources
from lora_dist.metrics.slots.errors import ATTRIBUTES, SlotError, count_errors, find_errors
from lora_dist.metrics.slots.rules import LEVELS
from lora_dist.run_dir import RunDir

FULL = dict(
    parse_mr(
        "name[The Golden Curry], eatType[pub], food[French], priceRange[less than £20], customer rating[3 out of 5], "
        "area[riverside], familyFriendly[no], near[Café Rouge]"
    )
)
GOOD = (
    "The Golden Curry is an adults-only pub by the river near Café Rouge. It has French food for under £20 and a "
    "customer rating of 3 out of 5."
)


def errors(mr: str, text: str) -> list[tuple[str, str]]:
    return [(error.kind, error.attribute) for error in find_errors(dict(parse_mr(mr)), text)]


def test_a_text_that_says_everything() -> None:
    assert find_errors(FULL, GOOD) == []


def test_an_empty_text_leaves_out_everything() -> None:
    assert find_errors(FULL, "") == [SlotError("missing", attribute) for attribute in ATTRIBUTES]


@pytest.mark.parametrize(
    ("said", "instead", "error"),
    [
        ("The Golden Curry", "The Mill", ("contradicted", "name")),
        ("The Golden Curry", "It", ("missing", "name")),
        ("pub", "coffee shop", ("contradicted", "eatType")),
        ("pub", "restaurant", ("missing", "eatType")),  # any place is a restaurant
        ("French", "Fast", ("contradicted", "food")),
        ("French", "good", ("missing", "food")),
        ("French", "French and Italian", ("added", "food")),
        ("for under £20", "for more than 30 pounds", ("contradicted", "priceRange")),
        ("for under £20", "at moderate prices", ("contradicted", "priceRange")),
        ("3 out of 5", "one star", ("contradicted", "customer rating")),
        ("a customer rating of 3 out of 5", "good service", ("missing", "customer rating")),
        ("by the river", "in the city centre", ("contradicted", "area")),
        ("by the river", "north of the city centre", ("missing", "area")),
        ("an adults-only", "a kid friendly", ("contradicted", "familyFriendly")),
        ("near Café Rouge", "near Café Brazil", ("contradicted", "near")),
        ("near Café Rouge", "", ("missing", "near")),
    ],
)
def test_one_error(said: str, instead: str, error: tuple[str, str]) -> None:
    assert said in GOOD
    assert find_errors(FULL, GOOD.replace(said, instead)) == [error]


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ("under £20", "low prices"),
        ("under £20", "a reasonable price"),
        ("customer rating of 3 out of 5", "average customer rating"),
        ("customer rating of 3 out of 5", "3-star rating"),
        ("customer rating of 3 out of 5", "rating of three stars"),
        ("an adults-only pub", "a pub that is not recommended for kids"),
        ("an adults-only pub", "a non family-friendly pub"),
        ("by the river", "in the riverside area"),
        ("near Café Rouge", "next to the cafe rouge"),
    ],
)
def test_other_words_for_the_same(said: str, instead: str) -> None:
    assert find_errors(FULL, GOOD.replace(said, instead)) == []


def test_names_say_nothing_of_the_other_attributes() -> None:
    # Neither Indian food nor a coffee shop, a bar, a burger or a hotel.
    mr = "name[The Golden Curry], near[Raja Indian Cuisine]"
    assert errors(mr, "The Golden Curry is near Raja Indian Cuisine.") == []
    assert errors("name[Cocum], near[Burger King]", "Cocum is near Burger King.") == []
    assert errors("name[Cocum], near[The Rice Boat]", "Cocum is by The Rice Boat.") == []


def test_a_number_counts_more_than_the_words_around_it() -> None:
    mr = "name[Cocum], customer rating[1 out of 5]"
    assert errors(mr, "Cocum has an average customer rating of 1 out of 5 stars.") == []
    assert errors(mr, "Cocum has 5 stars.") == [("contradicted", "customer rating")]


def test_price_and_rating_keep_their_words_apart() -> None:
    mr = "name[Cocum], priceRange[high], customer rating[low]"
    assert errors(mr, "Cocum has high prices and a low customer rating.") == []
    assert errors(mr, "Cocum has a low price range and a high customer rating.") == [
        ("contradicted", "priceRange"),
        ("contradicted", "customer rating"),
    ]


def test_what_the_mr_does_not_have_is_added() -> None:
    text = "Cocum is a cheap family-friendly Chinese pub in the city centre near Avalon, rated 5 out of 5."
    added = ("eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
    assert errors("name[Cocum]", text) == [("added", attribute) for attribute in added]


def test_values_without_a_rule_are_refused() -> None:
    for mr in ("name[Cocum], food[Greek]", "name[Cocum], colour[red]"):
        with pytest.raises(UserError, match=r"there is no rule for (food\[Greek\]|colour\[red\])"):
            errors(mr, "Cocum")


def test_the_rate_by_hand() -> None:
    mrs = [{"name": "Cocum", "food": "French"}, {"name": "Zizzi", "area": "riverside", "near": "Avalon"}]
    counts = count_errors(mrs, ["Cocum is an Italian pub.", "By the river and near Avalon, Zizzi has high prices."])
    assert counts.slots == 5
    assert {attribute for attribute, count in counts.added.items() if count} == {"eatType", "priceRange"}
    assert counts.contradicted["food"] == 1
    assert sum(counts.missing.values()) == 0
    assert counts.rate == pytest.approx(3 / 5)


# On the corpus: the figures in the documentation of lora_dist.metrics.slots


@pytest.fixture(scope="module")
def dev(shared: Path) -> list[tuple[dict[str, str], str]]:
    examples = load_split(DataSettings(dir=shared / "e2e"), "dev")
    return [(dict(parse_mr(example.mr)), example.reference) for example in examples]


@pytest.mark.shared
def test_errors_of_people(dev: list[tuple[dict[str, str], str]]) -> None:
    counts = count_errors([mr for mr, _ in dev], [text for _, text in dev])
    assert counts.slots == 27_759
    assert counts.missing == dict(zip(ATTRIBUTES, (1, 81, 426, 143, 479, 232, 357, 5), strict=True))
    assert counts.added == dict(zip(ATTRIBUTES, (2, 10, 2, 28, 3, 9, 1, 2), strict=True))
    assert counts.contradicted == dict(zip(ATTRIBUTES, (0, 3, 14, 49, 25, 44, 47, 1), strict=True))
    assert counts.rate == pytest.approx(0.0708, abs=5e-5)


@pytest.mark.shared
def test_another_value_is_found_to_be_contradicted(dev: list[tuple[dict[str, str], str]]) -> None:
    random = Random(0)
    values = {attribute: sorted({mr[attribute] for mr, _ in dev if attribute in mr}) for attribute in ATTRIBUTES}
    tried, found = Counter[str](), Counter[str]()
    for mr, text in random.sample(dev, 1000):
        if find_errors(mr, text):
            continue
        for attribute, value in mr.items():
            levels = LEVELS.get(attribute, {})
            if others := [v for v in values[attribute] if levels.get(v, v) != levels.get(value, value)]:
                tried[attribute] += 1
                changed = {**mr, attribute: random.choice(others)}
                found[attribute] += find_errors(changed, text) == [SlotError("contradicted", attribute)]
    assert sum(tried.values()) > 2000
    assert all(found[attribute] / tried[attribute] > 0.95 for attribute in tried)
    assert found.total() / tried.total() == pytest.approx(0.988, abs=0.005)


@pytest.mark.shared
def test_templates_say_everything_but_a_price_that_is_only_called_high(shared: Path) -> None:
    mrs = [dict(parse_mr(mr)) for mr in read_sources(shared / "e2e" / "testset_w_refs.csv")]
    outputs = (shared / "golden" / "test-template.sys.txt").read_text().removesuffix("\n").split("\n")
    for mr, output in zip(mrs, outputs, strict=True):
        # "a high family friendly pub" says nothing of prices.
        expected = [SlotError("missing", "priceRange")] if mr.get("priceRange") == "high" else []
        assert find_errors(mr, output) == expected


# Commands


def test_mrs_from_files(tmp_path: Path) -> None:
    expected = ["name[A], food[B]", "name[C]", "name[A], food[B]"]
    (tmp_path / "mrs.txt").write_text("\n".join(expected) + "\n")
    assert read_sources(tmp_path / "mrs.txt") == expected
    with (tmp_path / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["MR"], *([mr] for mr in expected)])
    assert read_sources(tmp_path / "test.csv") == expected
    with (tmp_path / "refs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["mr", "ref"], *([mr, text] for mr in expected for text in "xy")])
    assert read_sources(tmp_path / "refs.csv") == expected
    (tmp_path / "none.csv").write_text("ref\nx\n")
    with pytest.raises(UserError, match=r"none\.csv, line 1: 0 of 1 columns look like sources"):
        read_sources(tmp_path / "none.csv")


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mrs, texts = tmp_path / "mrs.txt", tmp_path / "texts.txt"
    mrs.write_text("name[Cocum], food[French]\nname[Zizzi], area[riverside]\n")
    texts.write_text("Cocum has Italian food and good service.\nZizzi is a nice place to eat.\n")
    sentences = tmp_path / "sentences.tsv"
    arguments = ["score", str(texts), str(texts), "--mrs", str(mrs), "--sentence-level", str(sentences)]
    assert main([*arguments, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["slot_error_rate"]
    assert (counts["rate"], counts["slots"]) == (0.5, 4)
    assert counts["contradicted"]["food"] == counts["missing"]["area"] == 1
    assert main(arguments) == 0
    assert "slot error rate 0.5000 (1 missing, 0 added, 1 contradicted, of 4 slots)" in capsys.readouterr().out
    assert sentences.read_text().splitlines()[1].startswith("name[Cocum], food[French]\tCocum has Italian")
    mrs.write_text("name[Cocum]\n")
    assert main(arguments) == 2
    assert "1 meaning representations for 2 outputs" in capsys.readouterr().err


def decoded_run(folder: Path, food: str) -> RunDir:
    run = RunDir(folder)
    texts = [f"Cocum has {food} food\u2028and good service.", "Zizzi is a nice place to eat."]
    mrs = [f"name[Cocum], food[{food}]", "name[Zizzi], area[riverside]"]
    write_jsonl(run.outputs, [{"mr": mr, "text": text} for mr, text in zip(mrs, texts, strict=True)])
    lines = [text.replace("\u2028", " ") for text in texts]
    write_text(run.outputs_text, "\n".join(lines) + "\n")
    write_text(run.references_text, "\n\n".join(lines) + "\n\n")
    write_json(run.decode_signature, {"beams": 10})
    return run


def test_a_java_that_is_killed_does_not_cost_a_run_its_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, measure = decoded_run(tmp_path, "French"), metrics.measure

    def killed(*_: object) -> metrics.Measurements:
        monkeypatch.setattr(metrics, "measure", measure)  # the next one lives
        raise UserError("java failed with exit code -9")

    monkeypatch.setattr(metrics, "measure", killed)
    with pytest.raises(UserError, match="exit code -9"):
        score_run(run)
    assert not run.scores.exists()
    assert "bootstrap" in score_run(run)


@pytest.mark.parametrize(("food", "rate"), [("French", 0.25), ("Greek", None)])
def test_scores_of_a_run(food: str, rate: float | None, tmp_path: Path) -> None:
    run = decoded_run(tmp_path, food)
    score_run(run)
    scores = json.loads(run.scores.read_text())
    assert scores["slot_error_rate"]["rate"] == rate
    assert scores["BLEU"] == pytest.approx(1)
    assert list(scores)[-1] == "signature"
    if rate is None:
        assert "food[Greek]" in scores["slot_error_rate"]["reason"]
