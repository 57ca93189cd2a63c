"""The place names of E2E, in the attributes name and near, and the delexicalization of a text."""

import re
import unicodedata
from collections.abc import Mapping

_NAMES = (
    "Alimentum",
    "Aromi",
    "Bibimbap House",
    "Blue Spice",
    "Browns Cambridge",
    "Clowns",
    "Cocum",
    "Cotto",
    "Fitzbillies",
    "Giraffe",
    "Green Man",
    "Loch Fyne",
    "Midsummer House",
    "Strada",
    "Taste of Cambridge",
    "The Cambridge Blue",
    "The Cricketers",
    "The Dumpling Tree",
    "The Eagle",
    "The Golden Curry",
    "The Golden Palace",
    "The Mill",
    "The Olive Grove",
    "The Phoenix",
    "The Plough",
    "The Punter",
    "The Rice Boat",
    "The Twenty Two",
    "The Vaults",
    "The Waterman",
    "The Wrestlers",
    "Travellers Rest Beefeater",
    "Wildwood",
    "Zizzi",
)
# The Rice Boat is a value of both attributes. If an MR has it in neither, it counts as a name.
_NEAR = (
    "All Bar One",
    "Avalon",
    "Burger King",
    "Café Adriatic",
    "Café Brazil",
    "Café Rouge",
    "Café Sicilia",
    "Clare Hall",
    "Crowne Plaza Hotel",
    "Express by Holiday Inn",
    "Rainbow Vegetarian Café",
    "Raja Indian Cuisine",
    "Ranch",
    "The Bakers",
    "The Portland Arms",
    "The Six Bells",
    "The Sorrento",
    "Yippee Noodle Bar",
)
_SHORT_FORMS = {
    "Browns Cambridge": r"browns?(?: cambridge)?",
    "Travellers Rest Beefeater": r"travell?ers? rest(?: beef\w*)?",
    "Express by Holiday Inn": r"(?:express (?:by )?(?:the )?)?holiday inn|express by",
    "Crowne Plaza Hotel": r"crowne? plaza(?: hotel)?",
    "Raja Indian Cuisine": r"raja(?: indian)?(?: cuisine)?",
    "Rainbow Vegetarian Café": r"rainbow(?: vegetarian)?(?: cafe)?",
    "Yippee Noodle Bar": r"yippee(?: noodle)?(?: bar)?",
    "The Portland Arms": r"portland(?: arms)?",
    "The Twenty Two": r"twenty two|22",
}
"""Patterns of names that human references shorten."""


def normalize(text: str) -> str:
    """Lower-case a text, remove accents, apostrophes and hyphens, merge spaces, and write prices as in "£20"."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    text = "".join(character for character in decomposed if not unicodedata.combining(character))
    text = re.sub(r"['`\u2019]|(?<=\w):", "", text)
    text = re.sub(r"[-_\u2010-\u2015]", " ", text)
    for word, digits in (("twenty five", "25"), ("twenty(?! two)", "20"), ("thirty", "30")):
        text = re.sub(rf"\b{word}\b", digits, text)
    text = re.sub(r"£?(\d+) ?(?:british |uk )?(?:pounds?(?: sterling)?|gbp|euros?|quid)\b", r"£\1", text)
    text = re.sub(r"(?<![£\d])(20|25|30)\b", r"£\1", text)
    return re.sub(r"\s+", " ", text).replace("£ ", "£")


def delexicalize(mr: Mapping[str, str], text: str) -> tuple[str, dict[str, set[str]]]:
    """Replace each place name of a normalized text by "#"; return the text and the places by attribute (name, near)."""
    expected = {attribute: mr[attribute] for attribute in ("name", "near") if attribute in mr}
    found = set()
    # The MR's places come first: they may be part of a longer name, or not in the lists.
    for place in dict.fromkeys([*expected.values(), *_NAMES, *_NEAR]):
        text, times = re.subn(_pattern(place), "#", text)
        if times:
            found.add(place)
    others = found.difference(expected.values())
    return text, {
        "name": others.intersection(_NAMES) | {place for place in found if place == expected.get("name")},
        "near": others.intersection(_NEAR) | {place for place in found if place == expected.get("near")},
    }


def _pattern(name: str) -> str:
    words = normalize(name).removeprefix("the ")
    cafe = "(?:caff?e )?" if words.startswith("cafe ") else ""
    pattern = _SHORT_FORMS.get(name) or cafe + re.escape(words.removeprefix("cafe ")).replace(r"\ ", " ?") + "s?"
    return rf"(?:\bthe )?\b(?:{pattern})\b"
