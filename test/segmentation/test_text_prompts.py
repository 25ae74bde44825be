import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from semla_ros.errors import VocabularyError
from semla_ros.segmentation.text_prompts import SINGLE_TEMPLATE, Vocabulary, import_open_clip_file, templates
from semla_ros.torchvision_compat import import_open_clip

WORDS = ("road", "traffic sign", "person, pedestrian")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    """Just enough rows for three classes."""
    texts = [template.format(word) for template in templates("select") for name in WORDS for word in name.split(", ")]
    return Vocabulary.from_texts(texts, context_length=16)


def test_a_reduced_table_keeps_the_order_so_that_the_end_token_is_largest(vocabulary: Vocabulary) -> None:
    rows = vocabulary.tokenize(WORDS)
    full = Vocabulary().tokenize(WORDS)
    assert rows.shape == (3, 16)
    assert torch.equal(rows.argmax(dim=1), full.argmax(dim=1))
    assert rows.max() == len(vocabulary) - 1
    kept = torch.tensor(vocabulary.bpe_ids)
    assert torch.equal(kept[rows], full[:, :16])


def test_of_synonyms_a_single_template_takes_the_first(vocabulary: Vocabulary) -> None:
    assert torch.equal(vocabulary.tokenize(["person, pedestrian"]), vocabulary.tokenize(["person"]))


def test_an_ensemble_has_a_row_for_each_template_and_synonym(vocabulary: Vocabulary) -> None:
    rows = vocabulary.tokenize(WORDS, "select")
    assert rows.shape == (3, 8, 2, 16)
    assert not rows[:2, :, 1].any()
    assert rows[2].any(dim=-1).all()


def test_case_and_spaces_do_not_matter(vocabulary: Vocabulary) -> None:
    assert torch.equal(vocabulary.tokenize(["Traffic  Sign "]), vocabulary.tokenize(["traffic sign"]))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "class list is empty"),
        (["road", " "], "class 1 has an empty name"),
        (["road"] * 65_536, "has 65536 names; give 1 to 65535"),
        (["road", "sky", "Road "], "classes 0 and 2, 'road' and 'Road ', have the same prompt"),
        (["road", "person", "PERSON, pedestrian"], "'person' and 'PERSON, pedestrian', have the same prompt"),
        (["traffic sign", "traffic &amp;amp; sign", "traffic  Sign"], "classes 0 and 2"),
        (["road " * 20], "reads at most 16"),
        (
            ["traffic unicorn"],
            "'unicorn' is not in the captions .*known: .*pedestrian.*; published models know any word",
        ),
        (["traffic sing"], r"'sing' is not in the captions .*\(did you mean 'sign'\?\); published models"),
    ],
)
def test_a_class_list_that_cannot_work_is_refused_with_the_reason(
    vocabulary: Vocabulary, names: list[str], message: str
) -> None:
    with pytest.raises(VocabularyError, match=message):
        vocabulary.tokenize(names)


def test_with_an_ensemble_classes_are_the_same_only_with_the_same_words(vocabulary: Vocabulary) -> None:
    assert len(vocabulary.tokenize(["person", "person, pedestrian"], "select")) == 2
    with pytest.raises(VocabularyError, match="one of them can never win"):
        vocabulary.tokenize(["pedestrian, person", "person,  Pedestrian"], "select")


def test_template_sets_have_the_published_sizes() -> None:
    assert [len(templates(name)) for name in ("single", "select", "imagenet")] == [1, 8, 80]
    assert templates(SINGLE_TEMPLATE) == templates("single")
    with pytest.raises(VocabularyError, match="where the class name goes"):
        templates("a photo")


AWKWARD = (
    "", "  ", "a", "I'll they've we'd it's", "traffic-light/3 (left), 50km/h!", "Straße, façade", "x" * 500,
    "行人 道路 交通标志", "пешеход и дорога", "مشاة", "e\u0301te\u0301", "&amp;amp; &lt;b&gt; &#39;x&#39;", "schÃ¶n",
    "🚗🚦👩\u200d👧", "<start_of_text> road <end_of_text>", "tab\tnew\nline\u3000wide", "١٢٣ ⅷ ²", "\u200bzero\u200d",
)  # fmt: skip


def test_the_tokenizer_read_alone_gives_the_tokens_of_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip = import_open_clip()
    monkeypatch.delitem(sys.modules, "open_clip.tokenizer")
    alone = import_open_clip_file("tokenizer")
    assert alone.__name__ != "open_clip.tokenizer"
    ours, theirs = alone.SimpleTokenizer(), open_clip.SimpleTokenizer()
    sets = [make for name in ("single", "select", "imagenet") for make in templates(name)]
    names = open_clip.IMAGENET_CLASSNAMES
    texts = [sets[index % len(sets)].format(name) for index, name in enumerate([*names, *names, *AWKWARD * 5])]
    assert len(texts) > 2000
    assert [ours.encode(text) for text in texts] == [theirs.encode(text) for text in texts]
    assert templates("imagenet") == tuple(make("{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES)


def test_a_file_of_open_clip_that_needs_its_neighbours_is_imported_with_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import_open_clip()
    (tmp_path / "tokenizer.py").write_text("from .constants import OPENAI_DATASET_MEAN\n")
    package = ModuleSpec("open_clip", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.delitem(sys.modules, "open_clip.tokenizer")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    assert import_open_clip_file("tokenizer").__name__ == "open_clip.tokenizer"
