"""The names of E2E's restaurants and of what is near them, and finding them in a text."""

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
# The Rice Boat is in both attributes; where an MR has it in neither, it counts as a name.
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
_SHORTER = {
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
"""How people shorten names."""


def normalise(text: str) -> str:
    """Lower case without accents, apostrophes and hyphens, single spaces, and amounts of money as in "£20"."""
    decomposed = unicodedata.normalize("NFKD", text.lower())
    text = "".join(character for character in decomposed if not unicodedata.combining(character))
    text = re.sub(r"['`\u2019]|(?<=\w):", "", text)
    text = re.sub(r"[-_\u2010-\u2015]", " ", text)
    for word, digits in (("twenty five", "25"), ("twenty(?! two)", "20"), ("thirty", "30")):
        text = re.sub(rf"\b{word}\b", digits, text)
    text = re.sub(r"£?(\d+) ?(?:british |uk )?(?:pounds?(?: sterling)?|gbp|euros?|quid)\b", r"£\1", text)
    text = re.sub(r"(?<![£\d])(20|25|30)\b", r"£\1", text)
    return re.sub(r"\s+", " ", text).replace("£ ", "£")


def cut(mr: Mapping[str, str], text: str) -> tuple[str, dict[str, set[str]]]:
    """A normalised text with "#" for each place it names, and these places by attribute (name, near)."""
    own = {attribute: mr[attribute] for attribute in ("name", "near") if attribute in mr}
    found = set()
    # The MR's own come first: they may be part of another or be unknown.
    for place in dict.fromkeys([*own.values(), *_NAMES, *_NEAR]):
        text, times = re.subn(_pattern(place), "#", text)
        if times:
            found.add(place)
    others = found.difference(own.values())
    return text, {
        "name": others.intersection(_NAMES) | {place for place in found if place == own.get("name")},
        "near": others.intersection(_NEAR) | {place for place in found if place == own.get("near")},
    }


def _pattern(name: str) -> str:
    words = normalise(name).removeprefix("the ")
    cafe = "(?:caff?e )?" if words.startswith("cafe ") else ""
    pattern = _SHORTER.get(name) or cafe + re.escape(words.removeprefix("cafe ")).replace(r"\ ", " ?") + "s?"
    return rf"(?:\bthe )?\b(?:{pattern})\b"
