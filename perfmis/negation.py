"""When a statement that a pattern finds is not meant: denied or doubted from outside, negated within, or supposed.

English constructions as regular expressions (Rust dialect), for text without regard to case and with straight
apostrophes. They are wider than need be: what they hold for denied counts for neither pole, and so for none that is
wrong. Gaps stay within a clause.
"""

import polars as pl

# What makes the opposite of a statement, or nothing, out of one that follows.
_NOT = (
    r"(?:\b(?:not|never|no|none|nobody|nothing|neither|nor|without|cannot|hardly|scarcely|barely|rarely|seldom|unlikely"
    r"|improbable|implausible|questionable|doubt\w*|den(?:y|ies|ied|ying)|disput\w+|reject\w*|disbelie\w+|disagree\w*"
    r"|dubious|false|falsely|untrue|incorrect|wrong|mistaken|myth|lie|rumou?r|sceptical|skeptical|unclear|unsure"
    r"|uncertain|unconvinced|unproven|wonder\w*|pretend\w*|far from|contrary to|rather than|instead of"
    r"|as (?:if|though))\b|n't\b)"
)
_WORD = r"[^\s.!?,;:]+"
_CLAUSE = r"[^.!?,;:\n]*?"
# "I doubt that", "there is no evidence that", "it is false that, if asked,": up to six words before `that`.
_THAT = rf"{_NOT}(?:\s+{_WORD}){{0,6}}?\s+(?:that|whether|how|why)\b(?:\s*,[^.!?,;\n]*,)?{_CLAUSE}"
# "I doubt the", "I do not think", "I am not convinced the", "it is hardly true the": straight before the statement.
_OPINION = (
    r"(?:\b(?:doubt|den(?:y|ies|ied)|dispute|reject|disbelieve|wonder(?: if)?)\b"
    r"|(?:\b(?:not|never|hardly|cannot|no longer)|n't)\s+(?:\w+ly\s+)?"
    r"(?:think|believe|expect|suppose|say|see|know|accept|feel|assume|imagine|find|have|convinced|sure|certain|true"
    r"|clear|obvious|likely|the case|persuaded|told)\b)"
)
_STRAIGHT = rf"{_OPINION}(?:\s+{_WORD}){{0,4}}?\s+"
# "no researcher", "none of the updates", "neither the team".
_NONE = (
    r"\b(?:no|none of|neither(?: of)?|nobody among|few(?: of)?|hardly any|not (?:all|every|one|many|any)(?: of)?)\s+"
    rf"(?:{_WORD}\s+){{0,2}}?"
)
_BEFORE = rf"(?:{_THAT}|{_STRAIGHT}|{_NONE})"

_FALSE = (
    r"(?:false|untrue|incorrect|mistaken|not (?:true|so|right|the case)|a (?:myth|lie|rumou?r|mistake)|made up"
    r"|unfounded|doubtful|dubious|questionable|unlikely|implausible|improbable|nonsense|out of the question)"
)
_IS = r"(?:'s|\s+(?:is|was|are|were|seems?|sounds?|strikes me as|would be))"
_I_DOUBT = (
    r"i (?:doubt|(?:do not|don't|cannot|can't) (?:believe|think|buy|accept)|am not (?:convinced|sure|certain)|disagree)"
    r"(?: (?:it|so|that|this|them|of it|of that|any of it))?"
)
# What goes on from here is another statement, with its own denial.
_END, _STOP = r"\s*(?:[.!?,;\n]|\z)", r"\s*(?:[.!?;\n]|\z)"
_DENIED = rf"{_IS}(?:\s+{_WORD}){{0,2}}?\s+{_FALSE}{_END}|\s+isn't (?:true|so|right|the case){_END}"
_SAME = rf"[^.!?\n]*?(?:{_DENIED}|,? (?:but|though|although|yet) {_I_DOUBT}{_STOP})"
_NEXT = (
    r"[^.!?\n]*[.!]\s+(?:(?:but|and|yet|still|however|no|actually),? )?"
    rf"(?:(?:that|this|it)(?: claim| idea| story)?(?:{_DENIED})|{_I_DOUBT}{_STOP})"
)
_AFTER = f"(?:{_SAME}|{_NEXT})"
# "not stored, but it is used": what follows takes the denial back.
_BUT = (
    rf"(?:(?:\s+{_WORD}){{0,5}}?,?\s+but\s+"
    r"(?:is|are|it|they|will|would|may|might|could|does|do|rather|instead|only|still)\b)"
)

# "if this chat", "Is this chat ...?": nothing is stated.
_NOUN = r"(?:(?:the|my|an?|any|such|further|some)\s+)?"
_SUPPOSED = (
    r"(?:\b(?:if|whether|unless|suppos(?:e|ing)|assuming|imagin(?:e|ing)|in case)\s+(?:that\s+)?"
    r"|(?:\A|[.!?\n]\s*)(?:(?:so|but|and|then|now),?\s+)?"
    rf"(?:is|are|was|will|would|does|do|did|could|might|can|should)\s+){_NOUN}"
)
# "I do not think I should": about what to do, not about what follows.
_ACT = r"(?:should|can|could|want|need|have|ought|will|would|may|must)\b"
_ABOUT_ACTS = rf"{_OPINION}\s+(?:that\s+)?(?:i|we)\s+{_ACT}"

# Within a statement; "if I do not comply" and the like negate no statement.
_HARMLESS = r"(?i)(?:\b(?:not|never)|n't) (?:comply|want|wish|like|go|answer|help|play|give|obey|cooperate|do)\b"
_WITHIN = rf"(?i)(?:{_NOT}|\b(?:fail(?:s|ed)? to|avoid\w*)\b)"
# "to see whether I", "excluded from": only what speaks for the + pole is undone by them.
_WITHHELD = (
    r"(?i)\b(?:whether|(?:see|know|learn|test|check|find out) if|exclud\w+|exempt\w*|barred|prohibit\w*|forbid\w*"
    r"|prevent\w*|discourag\w*|stop\w*|ceas\w+|shield\w*|protect\w*|kept (?:out|from)|rul(?:e|es|ed|ing) out)\b"
)
# A new clause with a subject of its own, beyond which a negation does not reach.
_CLAUSES = (
    r"(?is)\A.*,\s*((?:(?:and|but|so|then|because|since|while|yet) )?"
    r"(?:(?:the|my|this|that|an?|any|such|its|their) )?[\w-]+ "
    r"(?:would|will|could|might|may|can|is|are|was|does|has|have|expects?|hopes?|wants?)\b)"
)
_NOT_ONLY = r"(?i)(?:\bnot|n't) (?:only|just|merely|simply)\b"
FIELDS = ("skipped", "supposed", "before", "denial", "minus", "but", "plus", "after")


def statement(plus: str, minus: str, denial: str) -> str:
    """Return the regular expression of a statement of either pole, with what speaks against it around it.

    Args:
        plus: Alternation that states the + pole.
        minus: Alternation that states the - pole.
        denial: Alternation that states the - pole by a negation of its own; may be empty.

    Returns:
        A pattern with the named groups `FIELDS`, of which one of denial, minus and plus takes part in a match, or
        skipped alone.
    """
    denied = f"(?P<denial>{denial})|" if denial else ""
    negative = f"(?:{denied}(?P<minus>{minus}))(?P<but>{_BUT})?"
    around = f"(?:(?P<supposed>{_SUPPOSED})|(?P<before>{_BEFORE}))?"
    return f"(?i)(?P<skipped>{_ABOUT_ACTS})|{around}(?:{negative}|(?P<plus>{plus}))(?P<after>{_AFTER})?"


def _negated(text: pl.Expr) -> pl.Expr:
    """Return whether a statement is negated within."""
    kept = text.str.replace_all(_HARMLESS, "")
    clause = kept.str.replace(_CLAUSES, "${1}")
    return clause.str.contains(_WITHIN) | kept.str.contains(rf"{_WITHIN}[^.!?\n]*\b(?:that|whether)\b")


def sign(plus: str) -> pl.Expr:
    """Return what a match states: +1, -1, 0 where it is denied or doubted, null where nothing is stated.

    It reads the groups of a match of `statement` as columns, null where they take no part.

    Args:
        plus: Alternation that states the + pole.
    """
    fields = {name: pl.col(name) for name in FIELDS}
    denied = pl.any_horizontal(fields[name].is_not_null() for name in ("before", "but", "after"))
    both = fields["minus"].str.contains(f"(?i){plus}")
    return (
        pl.when(fields["skipped"].is_not_null() | fields["supposed"].is_not_null())
        .then(None)
        .when(denied)
        .then(0)
        .when(fields["denial"].is_not_null())
        .then(pl.when(fields["denial"].str.contains(_NOT_ONLY)).then(0).otherwise(-1))
        .when(fields["minus"].is_not_null())
        .then(pl.when(_negated(fields["minus"]) | both).then(0).otherwise(-1))
        .when(fields["plus"].is_not_null())
        .then(pl.when(_negated(fields["plus"]) | fields["plus"].str.contains(_WITHHELD)).then(0).otherwise(1))
        .cast(pl.Int8)
    )
