"""The vocabulary for transformers: a token is a character. Never imported here: an export holds it as it is."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer


class SwitchLMTokenizer(PreTrainedTokenizer):  # type: ignore[misc]  # which may not be installed
    """The id of a character is its place in `characters` of vocabulary.json. ValueError for one that is not there."""

    vocab_files_names = {"vocab_file": "vocabulary.json"}  # noqa: RUF012  as in transformers
    model_input_names = ["input_ids"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **others: Any) -> None:
        self.stored = json.loads(Path(vocab_file).read_text(encoding="utf-8"))
        self.ids = {character: number for number, character in enumerate(self.stored["characters"])}
        super().__init__(**others)

    @property
    def vocab_size(self) -> int:
        return len(self.ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def _tokenize(self, text: str, **others: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self.ids:
            raise ValueError(f"the model does not know {token!r}: use characters of vocabulary.json")
        return self.ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.stored["characters"][index])

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        file = Path(save_directory, f"{filename_prefix}-" * bool(filename_prefix) + "vocabulary.json")
        file.write_text(json.dumps(self.stored), encoding="utf-8")
        return (str(file),)
