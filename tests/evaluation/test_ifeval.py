"""Every instruction type of IFEval, with an answer made to follow it and one made not to."""

import json

import pytest

from profit_sft.evaluation.tasks.ifeval import ifeval_grader

# One or two plain sentences each, written for this test.
LANGUAGES = {
    "ar": "ذهبت إلى السوق في الصباح واشتريت الخبز والفاكهة لعائلتي.",
    "bg": "Сутринта отидох на пазара и купих хляб и плодове за моето семейство.",
    "bn": "আমি সকালে বাজারে গিয়ে পরিবারের জন্য রুটি এবং ফল কিনেছি।",
    "de": "Am Morgen ging ich auf den Markt und kaufte Brot und Obst für meine Familie.",
    "fa": "صبح به بازار رفتم و برای خانواده‌ام نان و میوه خریدم و سپس به خانه برگشتم.",
    "fi": "Aamulla menin torille ja ostin leipää ja hedelmiä perheelleni.",
    "gu": "સવારે હું બજારમાં ગયો અને મારા પરિવાર માટે રોટલી અને ફળો ખરીદ્યા.",
    "hi": "सुबह मैं बाज़ार गया और अपने परिवार के लिए रोटी और फल ख़रीदे और फिर घर लौट आया।",
    "it": "Questa mattina sono andato al mercato e ho comprato il pane e la frutta per la mia famiglia.",
    "kn": "ಬೆಳಿಗ್ಗೆ ನಾನು ಮಾರುಕಟ್ಟೆಗೆ ಹೋಗಿ ನನ್ನ ಕುಟುಂಬಕ್ಕಾಗಿ ಹಣ್ಣು ಕೊಂಡೆ.",
    "ko": "아침에 시장에 가서 가족을 위해 빵과 과일을 샀습니다.",
    "mr": "सकाळी मी बाजारात गेलो आणि माझ्या कुटुंबासाठी भाकरी आणि फळे विकत घेतली आहेत.",
    "ne": "बिहान म बजार गएँ र मेरो परिवारको लागि रोटी र फलफूल किनेँ। त्यसपछि म घर फर्किएँ।",
    "pa": "ਸਵੇਰੇ ਮੈਂ ਬਾਜ਼ਾਰ ਗਿਆ ਅਤੇ ਆਪਣੇ ਪਰਿਵਾਰ ਲਈ ਰੋਟੀ ਅਤੇ ਫਲ ਖਰੀਦੇ।",
    "pt": "De manhã fui ao mercado e comprei pão e frutas para a minha família.",
    "ru": "Утром я пошёл на рынок и купил хлеб и фрукты для своей семьи.",
    "sw": "Asubuhi nilikwenda sokoni na nilinunua mkate na matunda kwa ajili ya familia yangu.",
    "ta": "காலையில் நான் சந்தைக்குச் சென்று என் குடும்பத்திற்குப் பழங்கள் வாங்கினேன்.",
    "te": "ఉదయం నేను మార్కెట్‌కు వెళ్లి నా కుటుంబం కోసం పండ్లు కొన్నాను.",
    "th": "ตอนเช้าฉันไปตลาดและซื้อขนมปังกับผลไม้ให้ครอบครัวของฉัน",
    "ur": "صبح میں بازار گیا اور اپنے خاندان کے لیے روٹی اور پھل خریدے ہیں",
    "vi": "Buổi sáng tôi đi chợ và mua bánh mì cùng trái cây cho gia đình tôi.",
}
ENGLISH = "This is a plain English sentence about a small garden and the people who work there"


def at_least(kwargs, count, enough, none):
    """Order two answers by the relation: with `count` of what is counted, and with nothing of it."""
    answers = (enough(kwargs[count]), none)
    return answers if "at least" in kwargs.values() else answers[::-1]


def repeated(text, separator):
    return lambda count: separator.join([text] * count)


def paragraphs_with_first_word(kwargs, word):
    paragraphs = ["Some text."] * kwargs["num_paragraphs"]
    paragraphs[kwargs["nth_paragraph"] - 1] = f"{word} is how this one starts."
    return "\n\n".join(paragraphs)


def without_letter(letter):
    return "zzz" if letter != "z" else "xxx"


# From the arguments of an instruction to an answer that follows it and one that does not.
ANSWERS = {
    "punctuation:no_comma": lambda k: ("No such sign here.", "One, here."),
    "detectable_format:number_highlighted_sections": lambda k: (
        " and ".join(f"*part {i}*" for i in range(k["num_highlights"])),
        "None of this stands out.",
    ),
    "length_constraints:number_words": lambda k: at_least(k, "num_words", repeated("word", " "), "word"),
    "detectable_content:number_placeholders": lambda k: (
        " ".join(f"[place {i}]" for i in range(k["num_placeholders"])),
        "No place to fill in.",
    ),
    "combination:repeat_prompt": lambda k: (f"{k['prompt_to_repeat']}\n\nThen the answer.", "The answer alone."),
    "detectable_format:title": lambda k: ("<<A short title>>\nText.", "Text without one."),
    "change_case:english_lowercase": lambda k: (ENGLISH.lower(), ENGLISH),
    "detectable_format:number_bullet_lists": lambda k: (
        repeated("* a point", "\n")(k["num_bullets"]),
        repeated("* a point", "\n")(k["num_bullets"] + 1),
    ),
    "change_case:english_capital": lambda k: (ENGLISH.upper(), ENGLISH),
    "detectable_format:multiple_sections": lambda k: (
        "\n".join(f"{k['section_spliter']} {i + 1}\nText." for i in range(k["num_sections"])),
        "One text.",
    ),
    "change_case:capital_word_frequency": lambda k: at_least(
        k, "capital_frequency", repeated("LOUD", " quiet "), "all is quiet"
    ),
    "startend:quotation": lambda k: ('"All of it."', 'Not "all" of it.'),
    "keywords:existence": lambda k: (" ".join(k["keywords"]), "zzz"),
    "detectable_format:json_format": lambda k: ('```json\n{"answer": 1}\n```', "answer: 1"),
    "length_constraints:number_paragraphs": lambda k: (
        repeated("A paragraph.", "\n***\n")(k["num_paragraphs"]),
        repeated("A paragraph.", "\n***\n")(k["num_paragraphs"] + 1),
    ),
    "combination:two_responses": lambda k: ("One answer.\n******\nAnother answer.", "One answer."),
    "language:response_language": lambda k: (LANGUAGES[k["language"]], ENGLISH),
    "keywords:letter_frequency": lambda k: at_least(
        k, "let_frequency", repeated(k["letter"], " "), without_letter(k["letter"])
    ),
    "startend:end_checker": lambda k: (f"Some text. {k['end_phrase']}", "Some text."),
    "keywords:forbidden_words": lambda k: ("zzz", f"It has {k['forbidden_words'][0]} in it."),
    "keywords:frequency": lambda k: at_least(k, "frequency", repeated(k["keyword"], " "), "zzz"),
    "length_constraints:number_sentences": lambda k: at_least(
        k, "num_sentences", repeated("It is a sentence.", " "), "Dr. Smith wrote one" if k["num_sentences"] > 1 else ""
    ),
    "detectable_content:postscript": lambda k: (f"Text.\n\n{k['postscript_marker']} And this.", "Text."),
    "length_constraints:nth_paragraph_first_word": lambda k: (
        paragraphs_with_first_word(k, k["first_word"]),
        paragraphs_with_first_word(k, "zzz"),
    ),
    "detectable_format:constrained_response": lambda k: ("My answer is yes.", "I would say so."),
}
# Arguments as a problem would have them, so that every type is tested without the data as well.
ARGUMENTS = {
    "detectable_format:number_highlighted_sections": {"num_highlights": 2},
    "length_constraints:number_words": {"num_words": 12, "relation": "less than"},
    "detectable_content:number_placeholders": {"num_placeholders": 3},
    "combination:repeat_prompt": {"prompt_to_repeat": "Say what rain is."},
    "detectable_format:number_bullet_lists": {"num_bullets": 3},
    "detectable_format:multiple_sections": {"num_sections": 2, "section_spliter": "Part"},
    "change_case:capital_word_frequency": {"capital_frequency": 2, "capital_relation": "at least"},
    "keywords:existence": {"keywords": ["river", "stone"]},
    "length_constraints:number_paragraphs": {"num_paragraphs": 3},
    "language:response_language": {"language": "de"},
    "keywords:letter_frequency": {"letter": "q", "let_frequency": 3, "let_relation": "less than"},
    "startend:end_checker": {"end_phrase": "That is all."},
    "keywords:forbidden_words": {"forbidden_words": ["river"]},
    "keywords:frequency": {"keyword": "river", "frequency": 2, "relation": "at least"},
    "length_constraints:number_sentences": {"num_sentences": 2, "relation": "less than"},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "rain"},
}


@pytest.fixture(scope="module")
def grade(punkt):
    return ifeval_grader(lambda text: None)


def problem(*instructions):
    return {
        "key": 1,
        "prompt": "Write something.",
        "instruction_id_list": [name for name, _ in instructions],
        "kwargs": [kwargs for _, kwargs in instructions],
    }


@pytest.mark.parametrize("name", ANSWERS)
def test_each_instruction_tells_a_following_answer_from_another(grade, name):
    kwargs = ARGUMENTS.get(name, {})
    follows, fails = ANSWERS[name](kwargs)
    assert grade(problem((name, kwargs)), follows).correct
    assert not grade(problem((name, kwargs)), fails).correct


def test_each_instruction_of_the_file_with_its_own_arguments(grade, shared_data):
    rows = [json.loads(line) for line in (shared_data / "ifeval.jsonl").read_text().splitlines()]
    found = [pair for row in rows for pair in zip(row["instruction_id_list"], row["kwargs"], strict=True)]
    assert {name for name, _ in found} == ANSWERS.keys()
    wrong = []
    for name, kwargs in found:
        follows, fails = ANSWERS[name](kwargs)
        if not grade(problem((name, kwargs)), follows).correct or grade(problem((name, kwargs)), fails).correct:
            wrong.append((name, kwargs))
    assert not wrong


def test_columns_that_are_null_count_as_absent(grade):
    kwargs = {"num_highlights": 2, "relation": None, "num_words": None}
    assert grade(problem(("detectable_format:number_highlighted_sections", kwargs)), "*a* and *b*").correct


def test_strict_and_loose_by_prompt_and_by_instruction(grade):
    # Strictly the title is there and the comma, too; without its last line the answer has no comma.
    two = problem(("punctuation:no_comma", {}), ("detectable_format:title", {}))
    found = grade(two, "<<Title>>\nNo sign here.\nI hope that helps, friend!")
    assert not found.correct
    assert found.details["followed"] == [False, True]
    assert found.details["num_instructions"] == 2
    assert found.details["scores"] == {
        "prompt_strict": 0.0,
        "prompt_loose": 1.0,
        "instruction_strict": 0.5,
        "instruction_loose": 1.0,
    }


def test_a_sign_is_counted_where_the_original_draws_a_letter(grade):
    signs = problem(("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}))
    assert all(grade(signs, "# and #").correct for _ in range(20))
    assert not any(grade(signs, "etaoin shrdlu " * 20 + "#").correct for _ in range(20))
    from lm_eval.tasks.ifeval import instructions, instructions_registry

    import profit_sft.evaluation.ifeval_worker  # noqa: F401  # in this process it changes nothing of the library

    checkers = instructions_registry.INSTRUCTION_DICT
    assert checkers["keywords:letter_frequency"] is instructions.LetterFrequencyChecker


def test_an_empty_answer_follows_nothing_and_is_none(grade):
    found = grade(problem(("punctuation:no_comma", {})), " \n")
    assert not found.correct
    assert found.rule is None


def test_the_language_is_guessed_alike_each_time(grade):
    portuguese = problem(("language:response_language", {"language": "pt"}))
    # Words of no one language, of which langdetect by itself says now this one, now another.
    assert len({grade(portuguese, "radio taxi hotel").correct for _ in range(20)}) == 1


def test_a_thought_is_no_part_of_the_answer(grade):
    no_comma = problem(("punctuation:no_comma", {}))
    assert grade(no_comma, "<think>Well, let me see, then.</think>\n\nNo such sign.").correct
    assert grade(no_comma, "Well, let me see.</think>No such sign.").correct
    assert not grade(no_comma, "<think>No such sign.</think>One, here.").correct
    unfinished = grade(no_comma, "<think>No such sign")
    assert (unfinished.correct, unfinished.rule) == (False, None)


def test_brackets_within_brackets_are_graded(grade):
    assert grade(problem(("detectable_format:json_format", {})), "[" * 20 + "]" * 20).correct
    assert not grade(problem(("detectable_format:json_format", {})), "[" * 3000 + "]" * 3000).correct
    assert not grade(problem(("detectable_format:json_format", {})), "1" * 5000 + ",").correct


@pytest.mark.parametrize(
    "text", ["[a] [b]", "[a [b] c]", "[]]", "[a\n]", "]a[", "[[a]] [b", "[a][\n[b] [c]", "", "[" * 50]
)
def test_placeholders_are_counted_as_by_the_original(grade, text):
    from lm_eval.tasks.ifeval import instructions

    for count in range(1, 5):
        kwargs = {"num_placeholders": count}
        original = instructions.PlaceholderChecker("detectable_content:number_placeholders")
        original.build_description(**kwargs)
        found = grade(problem(("detectable_content:number_placeholders", kwargs)), text)
        assert found.correct == (bool(text) and original.check_following(text))
