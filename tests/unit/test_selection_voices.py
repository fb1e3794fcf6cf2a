"""Which files of a repository with voices are taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.errors import ArtifactNotAccessible
from controlplane.registry.files import SourceRules
from controlplane.registry.selection import choose, layout_file, layout_folders

VOICES = {
    "repo_or_path": "suno/bark",
    "v2/en_speaker_6": {
        "semantic_prompt": "speaker_embeddings/v2/en_speaker_6_semantic_prompt.npy",
        "coarse_prompt": "speaker_embeddings/v2/en_speaker_6_coarse_prompt.npy",
        "fine_prompt": "speaker_embeddings/v2/en_speaker_6_fine_prompt.npy",
    },
    "de_speaker_0": {"semantic_prompt": "speaker_embeddings/de_speaker_0_semantic_prompt.npy"},
}
FILES = [path for files in VOICES.values() if isinstance(files, dict) for path in files.values()]
OTHERS = ["config.json", "model.safetensors", "speaker_embeddings_path.json", "vocab.txt"]
NEVER = ["text.pt", "speaker_embeddings/de_speaker_0.npz", "speaker_embeddings/run.py", "x/y.npy"]


def folders(voices: Any) -> tuple[str, ...]:
    content = voices if isinstance(voices, bytes) else json.dumps(voices).encode()
    return layout_folders("speaker_embeddings_path.json", content, "org/name")


def test_arrays_that_are_named_come_with_the_model() -> None:
    names = [*OTHERS, *FILES, *NEVER]
    assert layout_file(names) == "speaker_embeddings_path.json"
    found = choose(iter(names), folders(VOICES), where="org/name", rules=SourceRules())
    assert set(found) == {*OTHERS, *FILES}


@pytest.mark.parametrize(
    "voices",
    [
        b"",
        b"[]",
        b'{"a": 3}',
        b'{"a": {"semantic_prompt": 3}}',
        {"a": {"semantic_prompt": "../secret.npy"}},
        {"a": {"semantic_prompt": "/etc/secret.npy"}},
        {"a": {"semantic_prompt": "speaker_embeddings/a.pkl"}},
    ],
)
def test_what_is_no_list_of_arrays_within_the_repository_is_refused(voices: Any) -> None:
    with pytest.raises(ArtifactNotAccessible, match=r"org/name .*speaker_embeddings_path\.json"):
        folders(voices)
