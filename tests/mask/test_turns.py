"""Whose turn a token belongs to, by the templates of several families and by none."""

import pytest

from profit_sft.mask.texts import stretches


def cut(text):
    """Pieces of a text written as `piece|piece`; `<...>` are marks, and what stands in `{...}` carries labels."""
    pieces, special, labels = [], [], []
    labeled = False
    for piece in text.split("|"):
        labeled |= piece.startswith("{")
        ends = piece.endswith("}")
        piece = piece.strip("{}").replace("/n", "\n")
        if labeled:
            labels.append(len(pieces))
        labeled &= not ends
        special.append(piece.startswith(("<", "[")))
        pieces.append(piece)
    return pieces, special, labels


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        (
            "<im_start>|system|/n|Be| brief.|<im_end>|/n|<im_start>|user|/n|Hi|<im_end>|/n|"
            "<im_start>|assistant|/n|{Yo|<im_end>}|/n",
            [("system", "Be brief.", False), ("user", "Hi", False), ("assistant", "Yo<im_end>", True)],
        ),
        (
            "<bos>|<start_header_id>|user|<end_header_id>|/n/n|Hi|<eot_id>|"
            "<start_header_id>|assistant|<end_header_id>|/n/n|{Yo|<eot_id>}",
            [("user", "Hi", False), ("assistant", "Yo<eot_id>", True)],
        ),
        (
            "<bos>|<start_of_turn>|user|/n|Hi|<end_of_turn>|/n|<start_of_turn>|model|/n|{Yo}",
            [("user", "Hi", False), ("assistant", "Yo", True)],
        ),
        ("<user>|/n|Hi|<end>|<assistant>|/n|{Yo|<end>}", [("user", "Hi", False), ("assistant", "Yo<end>", True)]),
        ("<s>|[INST]| Hi| there|[/INST]|{ Yo|</s>}", [("user", " Hi there", False), ("assistant", " Yo</s>", True)]),
        # Without marks: a prompt and its answer.
        ("def f():|/n|    |{return| 1}", [("prompt", "def f():", False), ("answer", "return 1", True)]),
        # A chat of several turns, one without labels.
        (
            "<im_start>|user|/n|A|<im_end>|<im_start>|assistant|/n|B|<im_end>|"
            "<im_start>|user|/n|C|<im_end>|<im_start>|assistant|/n|{D}",
            [("user", "A", False), ("assistant", "B", False), ("user", "C", False), ("assistant", "D", True)],
        ),
        # Marks that carry labels are shown; a role's word within a turn opens none.
        ("{<im_start>|assistant|/n|Yo}", [("assistant", "<im_start>assistant\nYo", True)]),
        ("<im_start>|user|/n|user|/n|Hi|<im_end>|{Yo}", [("user", "user\nHi", False), ("user", "Yo", True)]),
        ("<im_start>|usually|/n|{Yo}", [("prompt", "usually", False), ("answer", "Yo", True)]),
    ],
)
def test_turns_are_told_by_the_marks(text, turns):
    pieces, special, labels = cut(text)
    found = stretches(pieces, special, labels)
    assert [(part.role, "".join(pieces[part.start : part.end]), part.labeled) for part in found] == turns
    assert sorted(labels) == [at for part in found if part.labeled for at in range(part.start, part.end)]
