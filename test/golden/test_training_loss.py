"""One training-mode loss and the length of each adapter gradient, with peft on the reference's adapter."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from published_ways import duplicated_hooks, project_without_delta
from reference_set import class_rows, load_golden_model, read_arrays, read_json

from semla_ros.segmentation import clip
from semla_ros.segmentation.inference import normalise, resize
from semla_ros.segmentation.targets import lora_signature
from semla_ros.torchvision_compat import import_peft

LOSS_TOLERANCE = 1e-5  # relative
GRADIENT_TOLERANCE = 1e-3  # relative


@pytest.mark.parametrize(
    ("rewrites", "are_hooks_twice"),
    [(True, False), (True, True), (False, False)],
    ids=["rewritten", "rewritten, hooks twice", "literal"],
)
def test_loss_and_gradients_match(
    golden_dir, golden_tokens, monkeypatch: pytest.MonkeyPatch, rewrites: bool, are_hooks_twice: bool
) -> None:
    reference = read_json(golden_dir / "train.json")
    inputs = read_arrays(golden_dir / "train_inputs.npz")
    model = load_golden_model(golden_dir).model
    model.exact_rewrites = rewrites
    monkeypatch.setattr(clip, "project", project_without_delta)
    folder = golden_dir / "adapters" / reference["adapter"]
    adapted = import_peft().PeftModel.from_pretrained(model, folder, is_trainable=True).train()

    target = torch.from_numpy(inputs["target"]).long()
    image = normalise(torch.from_numpy(inputs["image"])[None], model.config)
    text = model.encode_text(class_rows(golden_tokens))
    with duplicated_hooks(model) if are_hooks_twice else nullcontext():
        logits = adapted(resize(image, model.config.working_resolution), text)
    wanted = target[None] == torch.arange(len(text))[:, None, None]  # ignored pixels belong to no class
    loss = F.binary_cross_entropy_with_logits(resize(logits, tuple(target.shape))[0], wanted.float())
    loss.backward()

    suffix = "_with_duplicated_hooks" if are_hooks_twice else ""
    assert loss.item() == pytest.approx(reference["loss" + suffix], rel=LOSS_TOLERANCE)
    lengths = {
        name.replace(".default", ""): None if item.grad is None else item.grad.norm().item()
        for name, item in adapted.named_parameters()
        if "lora_" in name
    }
    expected = reference["grad_l2_norm" + suffix]
    assert lengths.keys() == expected.keys()
    for name, length in expected.items():
        if length is None:
            assert lengths[name] is None, name
        else:
            assert lengths[name] == pytest.approx(length, rel=GRADIENT_TOLERANCE), name


def test_query_key_and_value_adapters_of_clip_learn_unless_told_otherwise(golden_dir, golden_tokens) -> None:
    model = load_golden_model(golden_dir).model
    peft = import_peft()
    targets = [path for path in lora_signature(model) if path.endswith("attn.k_proj")]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    model.encode_text(class_rows(golden_tokens)).square().sum(dim=0).sum().backward()
    learning = [name for name, item in adapted.named_parameters() if ".attn.k_proj." in name and item.grad is not None]
    assert learning
