import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from profit_sft.mask.texts import SORTS, TokenTexts
from tiny import chat_tokenizer, tiny_tokenizer


def read(tokenizer, text):
    token_ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
    previous = np.concatenate([[token_ids[-1]], token_ids[:-1]]).astype(np.int32)
    return token_ids, previous


def byte_fallback_tokenizer():
    """As Llama 2's and Gemma's: a token for each byte of what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"acdefikpstuw"]
    backend = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("made", [chat_tokenizer, byte_fallback_tokenizer])
@pytest.mark.parametrize(
    "text",
    [
        " two plus  2\n",
        "naïve 🎉, 答案!",
        "\u2028</script>",
        "e\u0301 👩\u200d👩\u200d👧 \u200b\ufeff\r\n",
        "caf\ufffd",
        "\ufffd\ufffd 🎉\ufffd🎉 答\ufffd",
    ],
)
def test_texts_in_context_are_the_text(made, text):
    token_ids, _ = read(made(), text)
    assert "".join(TokenTexts(made()).in_context(token_ids)) == text


def test_the_first_piece_of_a_character_gets_all_of_it():
    tokenizer = chat_tokenizer()  # a byte-level one that has seen no such character: a token a byte
    token_ids, _ = read(tokenizer, "答é")
    assert TokenTexts(tokenizer).in_context(token_ids) == ["答", "", "", "é", ""]


def test_half_a_character_stays_what_it_is():
    token_ids, _ = read(chat_tokenizer(), "答")
    assert TokenTexts(chat_tokenizer()).in_context(token_ids[:2]) == ["\ufffd", "\ufffd"]


def test_a_decoder_that_joins_words_and_an_id_that_stands_for_nothing():
    texts = TokenTexts(tiny_tokenizer())
    assert texts.text(5) == " w5"
    assert texts.text(999) == "<id 999>"


def test_sorts_and_words_of_a_real_tokenizer(smollm2_tokenizer):
    token_ids, previous = read(smollm2_tokenizer, "Rosa's 12 plums: 3 +4.\n naïve 🎉<|im_end|>")
    texts = TokenTexts(smollm2_tokenizer)
    sorts = texts.sorts(token_ids, previous)
    shown = [(text, SORTS[sort]) for text, sort in zip(texts.in_context(token_ids), sorts, strict=True)]
    assert shown == [
        ("R", "word start"),
        ("osa", "word continuation"),
        ("'s", "word continuation"),
        (" ", "whitespace"),
        ("1", "number"),
        ("2", "number"),
        (" pl", "word start"),
        ("ums", "word continuation"),
        (":", "punctuation"),
        (" ", "whitespace"),
        ("3", "number"),
        (" +", "punctuation"),
        ("4", "number"),
        (".", "punctuation"),
        ("\n", "whitespace"),
        (" na", "word start"),
        ("ïve", "word continuation"),
        (" 🎉", "word start"),
        ("", "word continuation"),
        ("", "word continuation"),
        ("<|im_end|>", "special"),
    ]
    begins = np.arange(len(token_ids)) == 0
    index, words = texts.words(token_ids, sorts, begins)
    assert words == ["Rosa's", "12", "plums", "3", "4", "naïve", "🎉"]
    assert index.tolist() == [0, 0, 0, -1, 1, 1, 2, 2, -1, -1, 3, -1, 4, -1, -1, 5, 5, 6, 6, 6, -1]


def test_no_word_reaches_across_answers(smollm2_tokenizer):
    token_ids, previous = read(smollm2_tokenizer, "plums")
    token_ids, previous = np.tile(token_ids, 2), np.tile(previous, 2)
    texts = TokenTexts(smollm2_tokenizer)
    sorts = texts.sorts(token_ids, previous)
    begins = np.arange(len(token_ids)) == 0
    assert texts.words(token_ids, sorts, begins)[1] == ["plumsplums"]
    begins[len(token_ids) // 2] = True
    assert texts.words(token_ids, sorts, begins)[1] == ["plums"]
