"""Token ids and class embeddings without adapters."""

from __future__ import annotations

import numpy as np
import torch
from reference_set import class_rows, largest_error, only_entry

from semla_ros.segmentation.text_prompts import Vocabulary, templates

TOLERANCE = 2e-5
ENSEMBLE = r"select\d+_ensemble"


def test_prompts_become_the_published_token_ids(golden_config, golden_tokens) -> None:
    vocabulary = Vocabulary(None, golden_config["clip"]["context_length"])
    for name, classes in (("classes", golden_config["classes"]), ("many", golden_config["many_classes"])):
        ids = vocabulary.tokenize(classes, golden_config["template"])
        assert np.array_equal(ids.numpy(), golden_tokens[f"{name}_bpe"])


def test_a_reduced_table_renumbers_the_same_ids(golden_config, golden_tokens, golden_vocabulary) -> None:
    for name, classes in (("classes", golden_config["classes"]), ("many", golden_config["many_classes"])):
        rows = golden_vocabulary.tokenize(classes, golden_config["template"])
        assert np.array_equal(rows.numpy(), golden_tokens[f"{name}_row"])


def test_class_embeddings_match(golden_model, golden_tokens, golden_text) -> None:
    for rows, expected in (("classes", "base"), ("many", f"many{len(class_rows(golden_tokens, 'many'))}")):
        embeddings = golden_model.model.encode_text(class_rows(golden_tokens, rows))
        assert largest_error(embeddings, golden_text[expected]) < TOLERANCE


def test_an_ensemble_is_averaged_over_synonyms(golden_config, golden_model, golden_tokens, golden_text) -> None:
    expected = golden_text[only_entry(golden_text, ENSEMBLE)[0]]
    classes, per_class = expected.shape[:2]
    rows = torch.from_numpy(golden_tokens["ens_row"]).long()
    owner = list(zip(golden_tokens["ens_class"].tolist(), golden_tokens["ens_template"].tolist(), strict=True))
    most = max(owner.count(item) for item in owner)
    ids = torch.zeros(classes, per_class, most, rows.shape[1], dtype=torch.int64)
    seen: dict[tuple[int, int], int] = {}
    for row, (index, template) in zip(rows, owner, strict=True):
        ids[index, template, seen.setdefault((index, template), 0)] = row
        seen[index, template] += 1
    assert largest_error(golden_model.model.clip.encode_ensemble(ids), expected) < TOLERANCE


def test_our_prompts_of_the_select_set_are_the_published_ones(golden_config, golden_tokens, golden_vocabulary) -> None:
    ids = golden_vocabulary.tokenize(golden_config["classes"], "select")
    assert ids.shape[1] == golden_tokens["ens_template"].max() + 1 == len(templates("select"))
    ours = {
        (index, template, tuple(row))
        for index, prompts in enumerate(ids.tolist())
        for template, words in enumerate(prompts)
        for row in words
        if any(row)
    }
    published = zip(golden_tokens["ens_class"], golden_tokens["ens_template"], golden_tokens["ens_row"], strict=True)
    assert ours == {(int(index), int(template), tuple(row.tolist())) for index, template, row in published}


def test_an_ensemble_is_usable_as_a_vocabulary(golden_config, golden_model, golden_text, golden_vocabulary) -> None:
    ids = golden_vocabulary.tokenize(golden_config["classes"], "select")
    embeddings = golden_model.model.encode_text(ids)
    mean = golden_text[only_entry(golden_text, ENSEMBLE)[0]].mean(axis=1)
    assert largest_error(embeddings, mean / np.linalg.norm(mean, axis=1, keepdims=True)) < TOLERANCE
