"""Slot errors: the attributes of a meaning representation (MR) that an output omits, adds or contradicts.

The slot error rate is (missing + added + contradicted) / slots of the MRs, as in Dušek, Howcroft and Rieser (2019),
"Semantic Noise Matters for Neural Natural Language Generation", section 4. The values that a text mentions are found by
the rules of `slots.rules` for E2E's eight attributes. The rules are this package's own, so rates from other programs
are only roughly comparable.

Human references have slot errors, too. Of the 27,759 slots of the dev set's 4,672 references the rules find 7.1 % in
error. We checked a sample of 187 of these errors by hand, from each attribute and kind: 94 % were true errors.

| attribute | slots | missing | added | contradicted | true errors of those checked |
|---|---|---|---|---|---|
| name | 4,672 | 1 | 2 | 0 | 3 of 3 |
| eatType | 3,481 | 81 | 10 | 3 | 25 of 25 |
| food | 3,269 | 426 | 2 | 14 | 26 of 26 |
| priceRange | 2,419 | 143 | 28 | 49 | 34 of 36 |
| customer rating | 4,081 | 479 | 3 | 25 | 23 of 27 |
| area | 3,453 | 232 | 9 | 44 | 33 of 33 |
| familyFriendly | 3,464 | 357 | 1 | 47 | 24 of 29 |
| near | 2,920 | 5 | 2 | 1 | 8 of 8 |

Recall: if one attribute of an MR gets another value, the rules find exactly that contradiction in 98.8 % of 17,404
cases, over the references without error. The rules were written on the dev and training sets, so both figures may be
optimistic. On the test set's references they find 8.1 % of the slots in error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lora_dist.errors import UserError
from lora_dist.metrics.slots import places, rules

ATTRIBUTES = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
ErrorKind = Literal["missing", "added", "contradicted"]


class SlotError(NamedTuple):
    """One slot error of one output."""

    kind: ErrorKind
    """missing: the text mentions no value of an attribute of the MR. contradicted: it mentions another value instead.
    added: it mentions an attribute that the MR does not have, or another value in addition to the MR's."""
    attribute: str


@dataclass(frozen=True)
class SlotCounts:
    """Slot errors of several outputs, counted by attribute."""

    slots: int
    """Slots of all MRs together."""
    missing: dict[str, int]
    added: dict[str, int]
    contradicted: dict[str, int]

    @property
    def rate(self) -> float:
        """The slot error rate, errors / slots: 0 is best, and added slots may raise it above 1."""
        errors = sum(sum(counts.values()) for counts in (self.missing, self.added, self.contradicted))
        return errors / self.slots if self.slots else 0.0


def find_slot_errors(mr: Mapping[str, str], output: str) -> list[SlotError]:
    """Find the slot errors of one output, at most one per attribute.

    Args:
        mr: Value of each attribute.
        output: The generated text.

    Raises:
        UserError: if the MR has an attribute or a value for which there is no rule.
    """
    for attribute, value in mr.items():
        if attribute not in ATTRIBUTES or not rules.has_rule(attribute, value):
            raise UserError(f"there is no rule for {attribute}[{value}]: slot errors need the values of E2E")
    text, mentioned = places.delexicalize(mr, places.normalize(output))
    mentioned |= rules.mentioned_values(text)
    errors = []
    for attribute in ATTRIBUTES:
        if attribute not in mr:
            if mentioned[attribute]:
                errors.append(SlotError("added", attribute))
            continue
        expected = rules.LEVELS.get(attribute, {}).get(mr[attribute], mr[attribute])
        if mentioned[attribute] - {expected}:
            errors.append(SlotError("added" if expected in mentioned[attribute] else "contradicted", attribute))
        elif not (mentioned[attribute] or rules.is_weakly_mentioned(attribute, expected, text)):
            errors.append(SlotError("missing", attribute))
    return errors


def count_slot_errors(mrs: Sequence[Mapping[str, str]], outputs: Sequence[str]) -> SlotCounts:
    """Count the slot errors of the outputs for `mrs`, one MR per output; raises as `find_slot_errors`."""
    errors = [error for mr, output in zip(mrs, outputs, strict=True) for error in find_slot_errors(mr, output)]

    def by_attribute(kind: ErrorKind) -> dict[str, int]:
        return {attribute: errors.count(SlotError(kind, attribute)) for attribute in ATTRIBUTES}

    return SlotCounts(sum(map(len, mrs)), by_attribute("missing"), by_attribute("added"), by_attribute("contradicted"))
