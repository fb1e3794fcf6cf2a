"""Which files of a speaking model are its voices: Bark's presets, arrays in folders of their own.

`speaker_embeddings_path.json` names each voice and its three `.npy` files (transformers,
`models/bark/processing_bark.py`). They are read without pickle.
"""

from __future__ import annotations

import json

from controlplane.errors import ArtifactNotAccessible
from controlplane.registry.files import is_plain_path

VOICES = "speaker_embeddings_path.json"
SUFFIX = ".npy"
_HOME = "repo_or_path"  # where transformers keeps the path of the repository, among the names


def voice_folders(content: bytes, where: str) -> tuple[str, ...]:
    """The folders that hold voices; the root, "", first.

    Args:
        content: of `VOICES`.
        where: the source, for the message.

    Raises:
        ArtifactNotAccessible: it is not what transformers writes.
    """
    try:
        voices = {name: files for name, files in json.loads(content).items() if name != _HOME}
        paths = [str(path) for files in voices.values() for path in files.values()]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactNotAccessible(f"{where} has a {VOICES} that cannot be read.") from error
    for path in paths:
        if not is_plain_path(path) or not path.endswith(SUFFIX):
            raise ArtifactNotAccessible(f"{where} names {path[:200]!r} as a voice in its {VOICES}.")
    return tuple(dict.fromkeys(["", *sorted(path.rpartition("/")[0] for path in paths)]))
