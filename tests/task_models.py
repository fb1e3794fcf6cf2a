"""Small Triton models that speak the tensors of our tasks, served by one backend of a plugin.

The answers tell what came in: whoever asks over REST sees how a call became tensors.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from controlplane.registry.model import ModelId

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.registry.repository import ModelRepository

BACKEND = """
import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def texts(*values):
    return np.array([v if isinstance(v, bytes) else v.encode() for v in values], dtype=np.object_)


def whole(value):
    return np.array([value], np.int32)


class TritonPythonModel:
    def initialize(self, args):
        self.folder = Path(args["model_repository"], args["model_version"])
        manifest = json.loads((self.folder / "manifest.json").read_text())
        self.task = manifest["task_type"]
        self.decoupled = manifest.get("decoupled", False)
        self.batch = manifest["max_batch_size"] > 0
        self.names = [tensor["name"] for tensor in manifest["inputs"]]

    def execute(self, requests):
        answers = [self.one(request) for request in requests]
        return None if self.decoupled else answers

    def one(self, request):
        given = {}
        for name in self.names:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                given[name] = tensor.as_numpy()
        options = json.loads(request.parameters() or "{}")
        if self.decoupled:
            sender = request.get_response_sender()
            try:
                self.stream(sender, given, options)
            except Exception as error:
                failure = pb_utils.TritonError(str(error))
                sender.send(pb_utils.InferenceResponse(error=failure), flags=FINAL)
            return None
        try:
            return self.response(**getattr(self, self.task)(given, options))
        except ValueError as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=failure)

    def response(self, **outputs):
        tensors = [pb_utils.Tensor(name, np.asarray(array)) for name, array in outputs.items()]
        return pb_utils.InferenceResponse(tensors)

    def stream(self, sender, given, options):
        for outputs in getattr(self, self.task)(given, options):
            if sender.is_cancelled():
                (self.folder / "cancelled").touch()
                break
            sender.send(self.response(**outputs))
        sender.send(flags=FINAL)

    def txt2embed(self, given, options):
        rows = [[len(text), len(given["text_input"])] for text in given["text_input"][:, 0]]
        if options.get("normalize"):
            rows = [[float("nan"), 0] for _ in rows] if options.get("prompt_name") else rows
        return {"embedding": np.array(rows, np.float32)}

    def img2embed(self, given, options):
        name = "image_input" if "image_input" in given else "text_input"
        rows = [[len(value), name == "image_input"] for value in given[name][:, 0]]
        return {"embedding": np.array(rows, np.float32)}

    def txt2txt(self, given, options):
        said = json.dumps({name: value[0].decode() for name, value in given.items()})
        known = {k: v for k, v in options.items() if k not in ("stream", "timeout", "priority")}
        words = [said, " ", json.dumps(known, sort_keys=True)]
        if given.get("text_input", [b""])[0] == b"endless":
            words = (f"{i} " for i in range(10**9))
        if given.get("text_input", [b""])[0] == b"flood":
            words = (f"{i}" * 100_000 for i in range(10**9))
        if given.get("text_input", [b""])[0] == b"fail":
            yield {"text_output": texts("so far")}
            raise RuntimeError("the model broke")
        last = {
            "finish_reason": texts("stop"),
            "prompt_tokens": whole(4), "completion_tokens": whole(3),
        }
        if options.get("stream"):
            for word in words:
                if not isinstance(words, list):
                    time.sleep(0.01)
                yield {"text_output": texts(word)}
            yield {"text_output": texts(""), **last}
        else:
            yield {"text_output": texts("".join(words)), **last}

    def img2txt(self, given, options):
        said = {name: len(value[0]) for name, value in given.items()}
        if "messages" in given:
            said["parts"] = json.loads(given["messages"][0])
        return {
            "text_output": texts(json.dumps(said)), "finish_reason": texts("length"),
            "prompt_tokens": whole(1), "completion_tokens": whole(2),
        }

    def txt2img(self, given, options):
        steps = options.get("steps", 3)
        for step in range(1, steps + 1):
            yield {"step": whole(step), "steps": whole(steps)}
        content = b"\\x89PNG" + json.dumps(options, sort_keys=True).encode()
        yield {"image_output": texts(content), "step": whole(steps), "steps": whole(steps)}

    img2img = txt2img

    def classification(self, given, options):
        count = len(next(iter(given.values())))
        found = options.get("top_k", 2)
        label = np.array([[f"l{i}".encode() for i in range(found)]] * count, dtype=np.object_)
        score = np.array([[0.75 / (i + 1) for i in range(found)]] * count, np.float32)
        return {"label": label, "score": score}

    def question_answering(self, given, options):
        rows = list(zip(given["text_input"][:, 0], given["context_input"][:, 0]))
        number = np.array([[len(context)] for _, context in rows], np.int32)
        return {
            "text_output": np.array([[q + b"|" + c] for q, c in rows], dtype=np.object_),
            "score": np.full((len(rows), 1), 0.5, np.float32), "start": number, "end": number,
        }

    def object_detection(self, given, options):
        if given["image_input"][0] == b"nothing":
            boxes = np.zeros((0, 4), np.float32)
            return {"label": texts(), "score": np.zeros(0, np.float32), "box": boxes}
        if given["image_input"][0] == b"broken":
            raise ValueError("image_input is no image")
        score = np.array([options.get("threshold", 0.25)], np.float32)
        boxes = np.array([[1, 2, 3, 4]], np.float32)
        return {"label": texts("cat"), "score": score, "box": boxes}

    def audio2txt(self, given, options):
        said = [options.get("language", "?"), str(len(given["audio_input"][0]))]
        timed = said if options.get("timestamps") else []
        times = np.arange(len(timed), dtype=np.float32)
        return {
            "text_output": texts(" ".join(said)), "segment_text": texts(*timed),
            "segment_start": times, "segment_end": times + 1,
        }

    def txt2audio(self, given, options):
        rate = options.get("sample_rate", 8000)
        return {"audio_output": texts(b"RIFF" + given["text_input"][0]), "sample_rate": whole(rate)}

    def own(self, given, options):
        return {
            "shout": np.array([[t.upper()] for t in given["word"][:, 0]], dtype=np.object_),
            "doubled": given["numbers"] * 2 if "numbers" in given else np.zeros(
                (len(given["word"]), 2, 1), np.int64),
        }
"""


def _tensors(*listed: str) -> list[dict[str, Any]]:
    """`name:TYPE:1,-1` as a manifest has it; `?` after the name for an optional input."""
    tensors = []
    for text in listed:
        name, datatype, shape = text.split(":")
        sizes = [int(size) for size in shape.split(",")]
        tensor = {"name": name.rstrip("?"), "datatype": datatype, "shape": sizes}
        tensors.append(tensor | ({"optional": True} if name.endswith("?") else {}))
    return tensors


_GENERATED = (
    "text_output:BYTES:1",
    "finish_reason:BYTES:1",
    "prompt_tokens:INT32:1",
    "completion_tokens:INT32:1",
)
_DRAWN = ("image_output:BYTES:1", "step:INT32:1", "steps:INT32:1")
# inputs, outputs, max_batch_size, decoupled
FORMS: dict[str, tuple[tuple[str, ...], tuple[str, ...], int, bool]] = {
    "txt2embed": (("text_input:BYTES:1",), ("embedding:FP32:2",), 32, False),
    "img2embed": (
        ("image_input?:BYTES:1", "text_input?:BYTES:1"),
        ("embedding:FP32:2",),
        32,
        False,
    ),
    "txt2txt": (("text_input?:BYTES:1", "messages?:BYTES:1"), _GENERATED, 0, True),
    "img2txt": (
        ("image_input:BYTES:1", "text_input?:BYTES:1", "messages?:BYTES:1"),
        _GENERATED,
        0,
        False,
    ),
    "txt2img": (("text_input:BYTES:1",), _DRAWN, 0, True),
    "img2img": (("image_input:BYTES:1", "text_input?:BYTES:1"), _DRAWN, 0, True),
    "classification": (("text_input:BYTES:1",), ("label:BYTES:-1", "score:FP32:-1"), 32, False),
    "question_answering": (
        ("text_input:BYTES:1", "context_input:BYTES:1"),
        ("text_output:BYTES:1", "score:FP32:1", "start:INT32:1", "end:INT32:1"),
        32,
        False,
    ),
    "object_detection": (
        ("image_input:BYTES:1",),
        ("label:BYTES:-1", "score:FP32:-1", "box:FP32:-1,4"),
        0,
        False,
    ),
    "audio2txt": (
        ("audio_input:BYTES:1",),
        (
            "text_output:BYTES:1",
            "segment_text:BYTES:-1",
            "segment_start:FP32:-1",
            "segment_end:FP32:-1",
        ),
        0,
        False,
    ),
    "txt2audio": (
        ("text_input:BYTES:1",),
        ("audio_output:BYTES:1", "sample_rate:INT32:1"),
        0,
        False,
    ),
    "own": (
        ("word:BYTES:1", "numbers?:INT64:2,-1"),
        ("shout:BYTES:1", "doubled:INT64:2,-1"),
        8,
        False,
    ),
}


def manifest(task: str) -> dict[str, Any]:
    """The manifest of the model that speaks a task's tensors; `own` has tensors of its own."""
    inputs, outputs, batch, decoupled = FORMS[task]
    return {
        "format": 1,
        "model_id": f"org/{task}",
        "task_type": task,
        "backend": "speaker",
        "engine": "python",
        "inputs": _tensors(*inputs),
        "outputs": _tensors(*outputs),
        "max_batch_size": batch,
        "files": [],
        **({"decoupled": True} if decoupled else {}),
    }


def publish(repository: ModelRepository, task: str) -> None:
    """Publish the model `org/{task}` as version 1."""
    folder = repository.new_staging()
    (folder / "manifest.json").write_text(json.dumps(manifest(task)), encoding="utf-8")
    repository.publish(ModelId("org", task), 1, folder)


def installed_backend(site: Path) -> Path:
    """A folder as pip leaves it: a package with the backend, and its entry point."""
    (site / "speaker").mkdir(parents=True)
    (site / "speaker" / "__init__.py").write_text(BACKEND, encoding="utf-8")
    facts = site / "speaker-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: speaker\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(
        "[modelmora.backends]\nspeaker = speaker:TritonPythonModel\n"
    )
    return site
