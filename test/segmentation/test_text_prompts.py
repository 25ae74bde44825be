import pytest
import torch

from semla_ros.errors import VocabularyError
from semla_ros.segmentation.text_prompts import SINGLE_TEMPLATE, Vocabulary, templates

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
        (["road", "sky", "Road "], "'Road' is given twice, as class 0 and 2"),
        (["road " * 20], "reads at most 16"),
        (["traffic unicorn"], "'unicorn' is a word this model was not trained with; it knows: .*pedestrian"),
    ],
)
def test_a_class_list_that_cannot_work_is_refused_with_the_reason(
    vocabulary: Vocabulary, names: list[str], message: str
) -> None:
    with pytest.raises(VocabularyError, match=message):
        vocabulary.tokenize(names)


def test_template_sets_have_the_published_sizes() -> None:
    assert [len(templates(name)) for name in ("single", "select", "imagenet")] == [1, 8, 80]
    assert templates(SINGLE_TEMPLATE) == templates("single")
    with pytest.raises(VocabularyError, match="where the class name goes"):
        templates("a photo")
