"""Slot errors: which attributes of a meaning representation (MR) an output leaves out, adds or contradicts.

The slot error rate is (missing + added + contradicted) / slots of the MRs, as in Dušek, Howcroft and Rieser (2019),
"Semantic Noise Matters for Neural Natural Language Generation", section 4. What a text says is decided by the rules of
`slot_rules`, our own, for E2E's eight attributes: rates from other programs compare only roughly.

People leave out slots and get them wrong, too. Of the 27,759 slots of the dev set's 4,672 human references the rules
find 7.1 % in error. We read a sample of 187 of these errors, from each attribute and kind: 94 % were errors indeed.

| attribute | slots | missing | added | contradicted | right of those read |
|---|---|---|---|---|---|
| name | 4,672 | 1 | 2 | 0 | 3 of 3 |
| eatType | 3,481 | 81 | 10 | 3 | 25 of 25 |
| food | 3,269 | 426 | 2 | 14 | 26 of 26 |
| priceRange | 2,419 | 143 | 28 | 49 | 34 of 36 |
| customer rating | 4,081 | 479 | 3 | 25 | 23 of 27 |
| area | 3,453 | 232 | 9 | 44 | 33 of 33 |
| familyFriendly | 3,464 | 357 | 1 | 47 | 24 of 29 |
| near | 2,920 | 5 | 2 | 1 | 8 of 8 |

The other way round, if one attribute of an MR is given another value, the references that had no error are found to
contradict just that one in 98.8 % of 17,404 cases. The rules were written with the dev and training sets in view, so
both figures may flatter them; on the test set's references they find 8.1 % of the slots in error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lora_dist.errors import UserError
from lora_dist.metrics.slots import places
from lora_dist.metrics.slots import rules as slot_rules

ATTRIBUTES = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
Kind = Literal["missing", "added", "contradicted"]


class SlotError(NamedTuple):
    """One error of one output."""

    kind: Kind
    """missing: the text says nothing of an attribute of the MR. contradicted: it says another value instead. added: it
    says a value of an attribute that the MR does not have, or another one besides the MR's."""
    attribute: str


@dataclass(frozen=True)
class SlotCounts:
    """The slot errors of some outputs, by attribute."""

    slots: int
    """Of all MRs together."""
    missing: dict[str, int]
    added: dict[str, int]
    contradicted: dict[str, int]

    @property
    def rate(self) -> float:
        """The slot error rate: errors / slots; 0 is best, and additions may bring it above 1."""
        errors = sum(sum(counts.values()) for counts in (self.missing, self.added, self.contradicted))
        return errors / self.slots if self.slots else 0.0


def find_errors(mr: Mapping[str, str], output: str) -> list[SlotError]:
    """The slot errors of one output, at most one an attribute.

    Args:
        mr: Values by attribute.
        output: The text.

    Raises:
        UserError: if the MR has an attribute or a value for which there is no rule.
    """
    for attribute, value in mr.items():
        if attribute not in ATTRIBUTES or not slot_rules.is_known(attribute, value):
            raise UserError(f"there is no rule for {attribute}[{value}]: slot errors are counted for E2E's values only")
    text, said = places.cut(mr, places.normalise(output))
    said |= slot_rules.said_values(text)
    errors = []
    for attribute in ATTRIBUTES:
        if attribute not in mr:
            if said[attribute]:
                errors.append(SlotError("added", attribute))
            continue
        wanted = slot_rules.LEVELS.get(attribute, {}).get(mr[attribute], mr[attribute])
        if said[attribute] - {wanted}:
            errors.append(SlotError("added" if wanted in said[attribute] else "contradicted", attribute))
        elif not (said[attribute] or slot_rules.is_said_loosely(attribute, wanted, text)):
            errors.append(SlotError("missing", attribute))
    return errors


def count_errors(mrs: Sequence[Mapping[str, str]], outputs: Sequence[str]) -> SlotCounts:
    """The slot errors of outputs for the MRs, one an output; the error is that of `find_errors`."""
    errors = [error for mr, output in zip(mrs, outputs, strict=True) for error in find_errors(mr, output)]

    def by_attribute(kind: Kind) -> dict[str, int]:
        return {attribute: errors.count(SlotError(kind, attribute)) for attribute in ATTRIBUTES}

    return SlotCounts(sum(map(len, mrs)), by_attribute("missing"), by_attribute("added"), by_attribute("contradicted"))
