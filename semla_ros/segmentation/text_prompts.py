"""Class names to prompts to token rows.

Tokens are those of CLIP's byte-pair encoding. A model that keeps only the token rows it was trained with says which:
`Vocabulary` renumbers, and refuses words that the model has no rows for. Renumbering keeps the order, so the
end-of-text token still has the largest id, and row 0 still pads.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from semla_ros.errors import VocabularyError, known_names

SINGLE_TEMPLATE = "A photo of a {} in the scene"
TEMPLATE_SETS = ("single", "select", "imagenet")  # 1, 8 and 80 templates
_KNOWN_WORDS_SHOWN = 80
OPEN_VOCABULARY = (
    "published models know any word: 'semla fetch catseg-l semla-adapters ViT-L-14-openai', then model catseg-l"
)
MOST_CLASSES = 65_535  # a mask has 16 bits, and one value means "no class"


def import_open_clip_file(name: str) -> ModuleType:
    """One module of open_clip that needs no other, without the package around it.

    Args:
        name: "tokenizer", "zero_shot_metadata".
    """
    package = importlib.util.find_spec("open_clip")  # finds the package, does not run it
    if f"open_clip.{name}" not in sys.modules and package is not None and package.origin is not None:
        file = Path(package.origin).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(f"open_clip_{name}_alone", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with contextlib.suppress(ImportError, OSError):  # where the file of a release needs its neighbours
            spec.loader.exec_module(module)
            return module
    from semla_ros.torchvision_compat import import_open_clip

    import_open_clip()
    return importlib.import_module(f"open_clip.{name}")


@functools.lru_cache(maxsize=1)
def _tokenizer() -> Any:
    module = import_open_clip_file("tokenizer")
    return getattr(module, "_tokenizer", None) or module.SimpleTokenizer()  # it has made one, of 11 MiB, for itself


@functools.lru_cache(maxsize=8)
def templates(name: str) -> tuple[str, ...]:
    """Prompt templates by the name of a set, or the template itself.

    Args:
        name: One of `TEMPLATE_SETS`, or a prompt with one `{}` in it.

    Raises:
        VocabularyError: It is neither.
    """
    if name == "single":
        return (SINGLE_TEMPLATE,)
    if name in ("select", "imagenet"):
        published = import_open_clip_file("zero_shot_metadata")
        if name == "imagenet":
            return tuple(make("{}") for make in published.OPENAI_IMAGENET_TEMPLATES)
        return (*(make("{}") for make in published.SIMPLE_IMAGENET_TEMPLATES), SINGLE_TEMPLATE)
    if name.count("{}") != 1:
        raise VocabularyError(
            f"template {name!r} must hold '{{}}' once, where the class name goes, or be one of "
            f"{', '.join(TEMPLATE_SETS)}"
        )
    return (name,)


def synonyms(class_name: str) -> list[str]:
    """The words of a class name such as "person, pedestrian"."""
    return [item.strip() for item in class_name.split(", ") if item.strip()]


class Vocabulary:
    """Maps text to rows of a model's token table.

    Args:
        bpe_ids: Byte-pair id of each row, ascending; None where the table is CLIP's own.
        context_length: Longest prompt in tokens, start and end included.
        cuts_long_prompts: Longer ones lose what stands before their end; else they are refused.

    Attributes:
        bpe_ids: As given.
        context_length: As given.
    """

    def __init__(
        self, bpe_ids: Sequence[int] | None = None, context_length: int = 77, *, cuts_long_prompts: bool = False
    ) -> None:
        if bpe_ids is not None and sorted(set(bpe_ids)) != list(bpe_ids):
            raise VocabularyError("the rows of a token table must stand in ascending order of their ids, each once")
        self.bpe_ids = None if bpe_ids is None else tuple(int(item) for item in bpe_ids)
        self.context_length = context_length
        self._cuts_long_prompts = cuts_long_prompts
        self._rows = None if self.bpe_ids is None else {item: row for row, item in enumerate(self.bpe_ids)}

    @classmethod
    def from_texts(cls, texts: Iterable[str], context_length: int = 77) -> Vocabulary:
        """The smallest table that can spell the given texts; say prompts, not bare class names."""
        tokenizer = _tokenizer()
        used = {0, tokenizer.sot_token_id, tokenizer.eot_token_id}
        for text in texts:
            used.update(tokenizer.encode(text))
        return cls(sorted(used), context_length)

    def __len__(self) -> int:
        return len(_tokenizer().encoder) if self.bpe_ids is None else len(self.bpe_ids)

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """Whole words that have a row of their own, in alphabetical order."""
        decoder = _tokenizer().decoder
        spelled = (decoder[item] for item in (self.bpe_ids or decoder))
        return tuple(sorted(item.removesuffix("</w>") for item in spelled if item.endswith("</w>")))

    def encode_sentence(self, text: str) -> list[int]:
        """Token rows of a text, start and end included.

        Raises:
            VocabularyError: It has a word that the model has no rows for, or is too long.
        """
        tokenizer = _tokenizer()
        ids = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
        if len(ids) > self.context_length and self._cuts_long_prompts:
            ids = [*ids[: self.context_length - 1], tokenizer.eot_token_id]
        if len(ids) > self.context_length:
            raise VocabularyError(
                f"'{text}' has {len(ids)} tokens, this model reads at most {self.context_length}: shorten it"
            )
        if self._rows is None:
            return ids
        if any(item not in self._rows for item in ids):
            raise VocabularyError(self._unknown_word(text))
        return [self._rows[item] for item in ids]

    def _unknown_word(self, text: str) -> str:
        assert self._rows is not None
        tokenizer = _tokenizer()
        unknown = next(
            (
                word
                for word in tokenizer.pat.findall(tokenizer.clean_fn(text))
                if any(item not in self._rows for item in tokenizer.encode(word))
            ),
            text,
        )
        shown = [word for word in self.words if word.isalpha() and len(word) > 1]
        return (
            f"'{unknown}' is not in the captions that this model was trained with "
            f"({known_names(unknown, shown, _KNOWN_WORDS_SHOWN)}); {OPEN_VOCABULARY}"
        )

    def tokenize(self, class_names: Sequence[str], template: str = "single") -> Tensor:
        """Prompts of a class list.

        Args:
            class_names: Of a class with synonyms ("person, pedestrian") a single template takes the first only, an
                ensemble averages over all.
            template: Name of a template set or a prompt with `{}`, see `templates`.

        Returns:
            int64, shape (T, L) for a single template, else (T, P, S, L) for P templates and up to S synonyms, for
            `SegmentationModel.encode_text`; rows of 0 pad, also in place of absent synonyms. L is `context_length`.

        Raises:
            VocabularyError: The list is empty or too long, a name is empty, too long or has an unknown word, or two
                classes have the same prompts.
        """
        prompts = templates(template)
        words = [synonyms(name)[: 1 if len(prompts) == 1 else None] for name in class_names]
        _check_class_names(class_names, words)
        if len(prompts) == 1:
            return torch.stack([self._padded(prompts[0].format(names[0])) for names in words])
        most = max(map(len, words))
        ids = torch.zeros(len(words), len(prompts), most, self.context_length, dtype=torch.int64)
        for row, names in enumerate(words):
            for column, prompt in enumerate(prompts):
                for index, name in enumerate(names):
                    ids[row, column, index] = self._padded(prompt.format(name))
        return ids

    def _padded(self, text: str) -> Tensor:
        ids = self.encode_sentence(text)
        row = torch.zeros(self.context_length, dtype=torch.int64)
        row[: len(ids)] = torch.tensor(ids)
        return row


def _check_class_names(class_names: Sequence[str], words: Sequence[Sequence[str]]) -> None:
    """Refuse a list that cannot be a vocabulary; `words` are those of each class that go into prompts.

    To CLIP, which sees neither case nor spaces, two classes may be the same; one of them could never win.
    """
    if not 0 < len(class_names) <= MOST_CLASSES:
        wrong = f"has {len(class_names)} names" if class_names else "is empty"
        raise VocabularyError(f"the class list {wrong}; give 1 to {MOST_CLASSES} class names")
    seen: dict[frozenset[tuple[int, ...]], int] = {}
    for index, names in enumerate(words):
        if not names:
            raise VocabularyError(f"class {index} has an empty name")
        first = seen.setdefault(frozenset(tuple(_tokenizer().encode(name)) for name in names), index)
        if first != index:
            raise VocabularyError(
                f"classes {first} and {index}, '{class_names[first]}' and '{class_names[index]}', have the same prompt "
                f"('{', '.join(names)}'), so that one of them can never win: leave one out, or begin its name otherwise"
            )
