"""The offline demo's corpus: restaurants that do not exist, in E2E's format, written by a small seeded grammar.

The grammar is the tables below. An MR is a sample of their values; a reference is a plan from `PLANS` filled with
a noun phrase, a place and verb phrases, and followed by sentences for the verb phrases that are left.
"""

import random
from itertools import islice
from pathlib import Path

from lora_dist.config import DataSettings
from lora_dist.data.e2e import FILES, Example, Split, format_mr, load_split, write_csv

# E2E's eight attributes in its order, with our own values (familyFriendly has E2E's two).
VALUES: dict[str, tuple[str, ...]] = {
    "name": (
        "The Copper Lantern",
        "The Salted Fig",
        "Juniper House",
        "Marlow Kitchen",
        "The Paper Crane",
        "Saffron Yard",
        "The Tin Whistle",
        "Larkspur",
        "The Quiet Heron",
        "Pepper Lane",
        "The Old Bakehouse",
        "The Brass Teapot",
        "Fennel Corner",
        "The Hungry Badger",
        "Tamarind",
        "The Crooked Spoon",
    ),
    "eatType": ("bistro", "tavern", "canteen", "tea room"),
    "food": ("Greek", "Korean", "Mexican", "Spanish", "Turkish", "Vietnamese"),
    "priceRange": ("budget", "mid-range", "premium", "under £15", "over £40"),
    "customer rating": ("poor", "decent", "excellent", "6 out of 10", "9 out of 10"),
    "area": ("harbour", "old town", "market square", "university quarter"),
    "familyFriendly": ("yes", "no"),
    "near": ("Café Lumen", "Willow Street Station", "the Glass Museum", "Orchard Theatre", "Quay Gardens"),
}

# What a verb phrase says of a value, adjectives that say it in the noun phrase, and where a place is.
VERB_PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "food": {food: (f"serves {food} food", f"offers {food} dishes", f"has a {food} menu") for food in VALUES["food"]},
    "priceRange": {
        "budget": ("has low prices", "is easy on the wallet"),
        "mid-range": ("has mid-range prices", "is reasonably priced"),
        "premium": ("has premium prices", "is at the expensive end"),
        "under £15": ("charges under £15", "costs less than £15 a head"),
        "over £40": ("charges over £40", "costs more than £40 a head"),
    },
    "customer rating": {
        "poor": ("has a poor customer rating", "gets poor reviews"),
        "decent": ("has a decent customer rating", "gets decent reviews"),
        "excellent": ("has an excellent customer rating", "gets excellent reviews"),
        "6 out of 10": ("has a customer rating of 6 out of 10", "is rated 6 out of 10"),
        "9 out of 10": ("has a customer rating of 9 out of 10", "is rated 9 out of 10"),
    },
    "familyFriendly": {
        "yes": ("welcomes families", "is a good choice for families"),
        "no": ("is not family friendly", "is for adults only"),
    },
}
ADJECTIVES: dict[tuple[str, str], str] = {
    ("customer rating", "poor"): "poorly rated",
    ("customer rating", "excellent"): "highly rated",
    ("priceRange", "budget"): "cheap",
    ("priceRange", "mid-range"): "mid-range",
    ("priceRange", "premium"): "expensive",
    ("familyFriendly", "yes"): "family-friendly",
}
PREPOSITIONS: dict[str, tuple[str, ...]] = {
    "harbour": ("by the", "at the"),
    "old town": ("in the",),
    "market square": ("on the", "at the"),
    "university quarter": ("in the",),
    "near": ("near", "close to", "next to"),
}

# {who} is a relative clause or nothing; a plan with {verbs} needs a verb phrase, one with {place} a place.
PLANS = (
    "{name} is {noun}{who}",
    "there is {noun} called {name}{who}",
    "{name}, {noun}, {verbs}",
    "{name} is {noun} {place}{who}",
    "there is {noun} called {name} {place}{who}",
    "{place} you will find {name}, {noun}{who}",
    "{place}, {name} is {noun}{who}",
    "{name}, {noun} {place}, {verbs}",
)
LOCATED = ("is", "is located", "can be found")
SUBJECTS = ("it", "the place")

OMISSION = 0.03  # share of references that leave an attribute unsaid, as people now and then do
REFERENCES = (4, 8)  # fewest and most sentences drawn for an MR
NUM_DEV_MRS = 40
NUM_TEST_MRS = 60


def write_corpus(folder: Path, seed: int, num_train_mrs: int = 600) -> None:
    """Write trainset.csv, devset.csv and testset_w_refs.csv into `folder`: the same bytes for the same seed.

    The test set has 60 MRs, the development set 40, and no two sets share one. An MR has up to eight references,
    so 600 training MRs make some 3,500 examples.
    """
    rng = random.Random(seed)
    sizes: dict[Split, int] = {"test": NUM_TEST_MRS, "dev": NUM_DEV_MRS, "train": num_train_mrs}
    mrs: dict[str, dict[str, str]] = {}  # a dict, for its order: a set's differs from process to process
    while len(mrs) < sum(sizes.values()):
        slots = _draw_slots(rng)
        mrs[format_mr(slots.items())] = slots

    folder.mkdir(parents=True, exist_ok=True)
    remaining = iter(mrs.items())
    for split, size in sizes.items():
        rows = [Example(mr, text) for mr, slots in islice(remaining, size) for text in _references(slots, rng)]
        if split == "train":
            rng.shuffle(rows)  # as in E2E, whose other two sets keep equal MRs together
        write_csv(folder / FILES[split], rows)


def plain_texts(folder: Path) -> list[str]:
    """The training references of the corpus in `folder` without their MRs, to pre-train a base model on."""
    return [example.reference for example in load_split(DataSettings(dir=folder), "train")]


def _draw_slots(rng: random.Random) -> dict[str, str]:
    """An MR's attributes, the name and two to seven others in E2E's order, with their values."""
    _, *others = VALUES
    chosen = rng.sample(others, rng.randint(2, len(others)))
    return {attribute: rng.choice(VALUES[attribute]) for attribute in VALUES if attribute in ("name", *chosen)}


def _references(slots: dict[str, str], rng: random.Random) -> list[str]:
    """Different ways to put the MR into words."""
    return list(dict.fromkeys(_realise(slots, rng) for _ in range(rng.randint(*REFERENCES))))


def _realise(slots: dict[str, str], rng: random.Random) -> str:
    """One way to put the MR into words. What has been said leaves `left`, so nothing is said twice."""
    left = dict(slots)
    name = left.pop("name")
    if rng.random() < OMISSION:
        del left[rng.choice(list(left))]
    noun = _take_noun(left, rng)
    place = _take_place(left, rng)
    verbs = [rng.choice(VERB_PHRASES[attribute][value]) for attribute, value in left.items()]
    if place and verbs and rng.random() < 0.25:
        verbs.append(f"{rng.choice(LOCATED)} {place}")
        place = ""
    rng.shuffle(verbs)

    first = min(len(verbs), rng.randint(0, 2))
    plan = rng.choice([p for p in PLANS if ("{place}" in p) == bool(place) and ("{verbs}" not in p or first)])
    clause = " and ".join(verbs[:first])
    sentences = [plan.format(name=name, noun=noun, place=place, verbs=clause, who=f" that {clause}" if first else "")]
    while first < len(verbs):
        last = first + rng.randint(1, 2)
        sentences.append(f"{rng.choice(SUBJECTS)} {' and '.join(verbs[first:last])}")
        first = last
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _take_noun(left: dict[str, str], rng: random.Random) -> str:
    """A noun phrase, such as "a cheap Greek tavern", with its attributes taken out of `left`."""
    words = []
    for (attribute, value), adjective in ADJECTIVES.items():
        if left.get(attribute) == value and rng.random() < 0.5:
            del left[attribute]
            words.append(adjective)
    if "food" in left and rng.random() < 0.5:
        words.append(left.pop("food"))
    words.append(left.pop("eatType", "restaurant"))
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _take_place(left: dict[str, str], rng: random.Random) -> str:
    """Area and landmark in either order, such as "by the harbour near Quay Gardens"; empty where neither is left."""
    parts = []
    if "area" in left:
        area = left.pop("area")
        parts.append(f"{rng.choice(PREPOSITIONS[area])} {area}")
    if "near" in left:
        parts.append(f"{rng.choice(PREPOSITIONS['near'])} {left.pop('near')}")
    rng.shuffle(parts)
    return " ".join(parts)
