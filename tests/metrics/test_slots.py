import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from lora_dist.cli.main import main
from lora_dist.config import DataSettings
from lora_dist.data.e2e import load_split, parse_mr
from lora_dist.errors import UserError
from lora_dist.metrics.readers import read_sources
from lora_dist.metrics.slots.errors import ATTRIBUTES, SlotError, count_slot_errors, find_slot_errors
from lora_dist.metrics.slots.rules import LEVELS
from lora_dist.metrics.text_files import read_text_file

pytestmark = pytest.mark.usefixtures("scored_once")

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
    return [(error.kind, error.attribute) for error in find_slot_errors(dict(parse_mr(mr)), text)]


def test_a_text_that_mentions_every_slot_has_no_error() -> None:
    assert find_slot_errors(FULL, GOOD) == []


def test_an_empty_text_misses_every_slot() -> None:
    assert find_slot_errors(FULL, "") == [SlotError("missing", attribute) for attribute in ATTRIBUTES]


@pytest.mark.parametrize(
    ("mention", "replacement", "error"),
    [
        ("The Golden Curry", "The Mill", ("contradicted", "name")),
        ("The Golden Curry", "It", ("missing", "name")),
        ("pub", "coffee shop", ("contradicted", "eatType")),
        ("pub", "restaurant", ("missing", "eatType")),  # the corpus calls any place a restaurant
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
def test_one_replaced_mention_is_one_error(mention: str, replacement: str, error: tuple[str, str]) -> None:
    assert mention in GOOD
    assert find_slot_errors(FULL, GOOD.replace(mention, replacement)) == [error]


@pytest.mark.parametrize(
    ("mention", "replacement"),
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
def test_other_wordings_of_a_value_are_no_error(mention: str, replacement: str) -> None:
    assert find_slot_errors(FULL, GOOD.replace(mention, replacement)) == []


def test_place_names_mention_no_other_attribute() -> None:
    # Neither Indian food nor a coffee shop, bar, burger or hotel.
    mr = "name[The Golden Curry], near[Raja Indian Cuisine]"
    assert errors(mr, "The Golden Curry is near Raja Indian Cuisine.") == []
    assert errors("name[Cocum], near[Burger King]", "Cocum is near Burger King.") == []
    assert errors("name[Cocum], near[The Rice Boat]", "Cocum is by The Rice Boat.") == []


def test_numbers_take_precedence_over_words() -> None:
    mr = "name[Cocum], customer rating[1 out of 5]"
    assert errors(mr, "Cocum has an average customer rating of 1 out of 5 stars.") == []
    assert errors(mr, "Cocum has 5 stars.") == [("contradicted", "customer rating")]


def test_the_same_word_is_assigned_to_price_or_rating() -> None:
    mr = "name[Cocum], priceRange[high], customer rating[low]"
    assert errors(mr, "Cocum has high prices and a low customer rating.") == []
    assert errors(mr, "Cocum has a low price range and a high customer rating.") == [
        ("contradicted", "priceRange"),
        ("contradicted", "customer rating"),
    ]


def test_attributes_that_the_mr_lacks_are_added() -> None:
    text = "Cocum is a cheap family-friendly Chinese pub in the city centre near Avalon, rated 5 out of 5."
    added = ("eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
    assert errors("name[Cocum]", text) == [("added", attribute) for attribute in added]


def test_values_without_a_rule_are_refused() -> None:
    for mr in ("name[Cocum], food[Greek]", "name[Cocum], colour[red]"):
        with pytest.raises(UserError, match=r"there is no rule for (food\[Greek\]|colour\[red\])"):
            errors(mr, "Cocum")


def test_the_slot_error_rate_equals_a_hand_computed_one() -> None:
    mrs = [{"name": "Cocum", "food": "French"}, {"name": "Zizzi", "area": "riverside", "near": "Avalon"}]
    counts = count_slot_errors(
        mrs, ["Cocum is an Italian pub.", "By the river and near Avalon, Zizzi has high prices."]
    )
    assert counts.slots == 5
    assert {attribute for attribute, count in counts.added.items() if count} == {"eatType", "priceRange"}
    assert counts.contradicted["food"] == 1
    assert sum(counts.missing.values()) == 0
    assert counts.rate == pytest.approx(3 / 5)


# On the corpus: the figures in the docstring of lora_dist.metrics.slots.errors


@pytest.fixture(scope="module")
def dev(shared: Path) -> list[tuple[dict[str, str], str]]:
    examples = load_split(DataSettings(dir=shared / "e2e"), "dev")
    return [(dict(parse_mr(example.mr)), example.reference) for example in examples]


@pytest.mark.slow
@pytest.mark.shared
def test_the_slot_errors_of_human_references_are_those_documented(dev: list[tuple[dict[str, str], str]]) -> None:
    counts = count_slot_errors([mr for mr, _ in dev], [text for _, text in dev])
    assert counts.slots == 27_759
    assert counts.missing == dict(zip(ATTRIBUTES, (1, 81, 426, 143, 479, 232, 357, 5), strict=True))
    assert counts.added == dict(zip(ATTRIBUTES, (2, 10, 2, 28, 3, 9, 1, 2), strict=True))
    assert counts.contradicted == dict(zip(ATTRIBUTES, (0, 3, 14, 49, 25, 44, 47, 1), strict=True))
    assert counts.rate == pytest.approx(0.0708, abs=5e-5)


@pytest.mark.shared
def test_a_replaced_value_of_an_mr_is_found_to_be_contradicted(dev: list[tuple[dict[str, str], str]]) -> None:
    random = Random(0)
    values = {attribute: sorted({mr[attribute] for mr, _ in dev if attribute in mr}) for attribute in ATTRIBUTES}
    total, found = Counter[str](), Counter[str]()
    for mr, text in random.sample(dev, 500):
        if find_slot_errors(mr, text):
            continue
        for attribute, value in mr.items():
            levels = LEVELS.get(attribute, {})
            if others := [v for v in values[attribute] if levels.get(v, v) != levels.get(value, value)]:
                total[attribute] += 1
                changed = {**mr, attribute: random.choice(others)}
                found[attribute] += find_slot_errors(changed, text) == [SlotError("contradicted", attribute)]
    assert sum(total.values()) > 1000
    assert all(found[attribute] / total[attribute] > 0.95 for attribute in total)
    assert found.total() / total.total() == pytest.approx(0.988, abs=0.005)


@pytest.mark.shared
def test_template_outputs_miss_only_the_price_high(shared: Path) -> None:
    mrs = [dict(parse_mr(mr)) for mr in read_sources(read_text_file(shared / "e2e" / "testset_w_refs.csv"))]
    outputs = (shared / "golden" / "test-template.sys.txt").read_text().removesuffix("\n").split("\n")
    for mr, output in zip(mrs, outputs, strict=True):
        # "a high family friendly pub" mentions no price.
        expected = [SlotError("missing", "priceRange")] if mr.get("priceRange") == "high" else []
        assert find_slot_errors(mr, output) == expected


@pytest.mark.launched
def test_the_score_command_reports_the_slot_error_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert "1 meaning representations for the 2 instances" in capsys.readouterr().err
