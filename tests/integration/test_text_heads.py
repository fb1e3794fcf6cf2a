"""Text classifiers and extractive readers: converted by the real converter, served by Triton."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from controlplane.triton.failures import RequestRejected
from tests import models, pipeline_models
from tests.served import convert, refusal, served

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = [pytest.mark.triton, pytest.mark.torch]

CONTEXT = (
    "the cat plays in the house. the small dog eats by the river and the child plays the guitar, "
    "Köln and 日本 are two cities; the woman in the red house eats fast. "
) * 4
QUESTION = "where is the small dog?"


def pipeline_scores(source: Path, texts: list[str]) -> list[dict[str, float]]:
    """transformers' own scores by label."""
    from transformers import pipeline

    classify = pipeline("text-classification", str(source), device="cpu")
    found = classify(texts, top_k=None, truncation=True)
    return [{entry["label"]: entry["score"] for entry in entries} for entries in found]


async def test_a_classifier_gives_transformers_scores(
    tmp_path: Path, triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    source = pipeline_models.text_classifier(tmp_path / "source")
    manifest = convert("classification", source, tmp_path / "artefact")
    assert manifest["parity"]["max_abs_diff"] <= 1e-4
    async with served("classifier", tmp_path / "artefact", triton, triton_client) as model:
        texts = list(models.TEXTS)
        found = await model.infer({"text_input": list(texts)})
        assert found["label"].shape == found["score"].shape == (len(texts), 3)
        assert (np.diff(found["score"], axis=1) <= 0).all()
        for row, expected in enumerate(pipeline_scores(source, texts)):
            labels = [label.decode() for label in found["label"][row]]
            wanted = [expected[label] for label in labels]
            np.testing.assert_allclose(found["score"][row], wanted, atol=2e-6)
        best = await model.infer({"text_input": [texts[0]]}, top_k=1)
        assert best["label"].tolist() == found["label"][:1, :1].tolist()
        results = await asyncio.gather(
            model.infer({"text_input": ["fine"]}),
            model.infer({"text_input": ["fine"]}, top_k=0),
            model.infer({"text_input": ["fine"]}, top_k=float("nan")),
            model.infer({"text_input": ["fine"]}, top_k="many"),
            model.infer({"text_input": ["x" * 100_001]}),
            model.infer({"text_input": ["fine", b"\xff"]}),
            return_exceptions=True,
        )
        assert isinstance(results[0], dict)
        assert [type(result) for result in results[1:]] == [RequestRejected] * 5
        assert str(results[1]) == (
            "Parameter top_k must be a whole number from 1 to 1,000,000, got 0."
        )
        assert str(results[5]) == "text_input[1] is not valid UTF-8: invalid start byte at byte 0."


@pytest.mark.parametrize(
    ("changes", "activation"),
    [
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"problem_type": "regression"}, "none"),
        ({"id2label": {0: "SCORE"}, "num_labels": 1}, "sigmoid"),
    ],
)
def test_scores_follow_the_problem_type(
    changes: dict[str, Any], activation: str, tmp_path: Path
) -> None:
    from backends.classification.classifier import Classifier

    source = pipeline_models.text_classifier(tmp_path / "source", **changes)
    manifest = convert("classification", source, tmp_path / "artefact")
    assert manifest["classification"]["activation"] == activation
    classifier = Classifier.open(tmp_path / "artefact")
    texts = ["the cat plays", "Two three, four"]
    request = classifier.read({"text_input": np.array([t.encode() for t in texts], np.object_)}, {})
    (found,) = classifier.classify([request])
    for row, expected in enumerate(pipeline_scores(source, texts)):
        mine = dict(zip([b.decode() for b in found.labels[row]], found.scores[row], strict=True))
        assert mine == pytest.approx(expected, abs=2e-6)


def test_a_decoder_looks_at_its_last_token_whatever_the_padding(tmp_path: Path) -> None:
    from backends.classification.classifier import Classifier

    source = pipeline_models.text_classifier(tmp_path / "source", decoder=True)
    convert("classification", source, tmp_path / "artefact")
    classifier = Classifier.open(tmp_path / "artefact")
    texts = ["the cat plays in the house", "a", "two three " * 9]
    request = classifier.read({"text_input": np.array([t.encode() for t in texts], np.object_)}, {})
    (found,) = classifier.classify([request])
    for row, expected in enumerate(pipeline_scores(source, texts)):
        mine = dict(zip([b.decode() for b in found.labels[row]], found.scores[row], strict=True))
        assert mine == pytest.approx(expected, abs=2e-6)


def rows(*texts: str) -> np.ndarray[Any, Any]:
    return np.array([[text.encode()] for text in texts], dtype=np.object_)


PASSAGES = ("the cat plays in the house", "a river", "the small dog eats " * 60, "")


def test_a_reranker_gives_the_scores_of_its_own_library(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    from backends.classification.classifier import Classifier
    from backends.errors import InputError

    source = pipeline_models.reranker(tmp_path / "source")
    manifest = convert("classification", source, tmp_path / "artefact")
    assert manifest["classification"]["activation"] == "none"
    assert manifest["inputs"][1] == {
        "name": "text_pair_input",
        "datatype": "BYTES",
        "shape": [1],
        "optional": True,
    }
    classifier = Classifier.open(tmp_path / "artefact")
    query = "where does the cat play?"
    pairs = {"text_input": rows(*[query] * 4), "text_pair_input": rows(*PASSAGES)}
    alone = classifier.read({"text_input": rows(query)}, {})
    both, _ = classifier.classify([classifier.read(pairs, {}), alone])
    expected = CrossEncoder(str(source), device="cpu").predict([(query, p) for p in PASSAGES])
    np.testing.assert_allclose(both.scores[:, 0], expected, atol=1e-5)
    assert len(set(np.round(both.scores[:, 0], 4))) == 4
    with pytest.raises(InputError, match="4 texts and text_pair_input 1"):
        classifier.read(pairs | {"text_pair_input": rows("a")}, {})
    with pytest.raises(InputError, match=r"text_pair_input\[0\] is not valid UTF-8"):
        classifier.read({"text_input": rows("a"), "text_pair_input": np.array([b"\xff"])}, {})
    with pytest.raises(InputError, match="takes text_input and text_pair_input, and nothing"):
        classifier.read({"text_pair_input": rows("a")}, {})
    with pytest.raises(InputError, match=r"those of org/name are fixed\."):
        classifier.read({"text_input": rows("a")}, {"candidate_labels": "a,b"})


async def test_an_encoder_decoder_judges_texts_pairs_and_labels_of_the_request(
    tmp_path: Path, triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    from transformers import pipeline

    source = pipeline_models.inference_model(tmp_path / "source")
    convert("classification", source, tmp_path / "artefact")
    texts = ["the cat plays in the house", "two </s> ends", "x", "the small dog eats " * 60]
    labels = ["animals", "cities and rivers", "music"]
    async with served("bart", tmp_path / "artefact", triton, triton_client) as model:
        found = await model.infer({"text_input": [*texts]})
        for row, text in enumerate(texts):  # one by one: a batch of these breaks transformers
            (expected,) = pipeline_scores(source, [text])
            mine = [label.decode() for label in found["label"][row]]
            wanted = [expected[label] for label in mine]
            np.testing.assert_allclose(found["score"][row], wanted, atol=1e-5)
        judge = pipeline("zero-shot-classification", str(source), device="cpu")
        for more in (
            {},
            {"multi_label": True},
            {"hypothesis_template": "It is about {}, surely."},
        ):
            found = await model.infer(
                {"text_input": [*texts]}, candidate_labels=json.dumps(labels), **more
            )
            assert found["score"].shape == (4, 3)
            for row, text in enumerate(texts):
                expected = judge(text, labels, **more)
                scores = dict(zip(expected["labels"], expected["scores"], strict=True))
                mine = [label.decode() for label in found["label"][row]]
                wanted = [scores[label] for label in mine]
                np.testing.assert_allclose(found["score"][row], wanted, atol=1e-5)
        best = await model.infer({"text_input": [texts[0]]}, candidate_labels="a, b", top_k=1)
        assert best["label"].shape == (1, 1)
        pair = {"text_input": ["a cat"], "text_pair_input": ["an animal"]}
        results = await asyncio.gather(
            model.infer(pair),
            model.infer(pair, candidate_labels="a"),
            model.infer({"text_input": ["a"]}, multi_label=True),
            model.infer({"text_input": ["a"]}, candidate_labels="a", hypothesis_template="so"),
            model.infer({"text_input": ["a"]}, candidate_labels="[1]"),
            model.infer({"text_input": ["a"]}, candidate_labels="a,a"),
            model.infer({"text_input": ["a"]}, candidate_labels="word " * 199),
            return_exceptions=True,
        )
        assert isinstance(results[0], dict)
        said = [str(result) for result in results[1:]]
        assert said[:5] == [
            "Give candidate_labels or text_pair_input, not both.",
            "Parameter multi_label goes with candidate_labels, which is missing.",
            "Parameter hypothesis_template must have {} where the label goes.",
            "Parameter candidate_labels must be a list of texts.",
            "Parameter candidate_labels must have from 1 to 100 labels, each once.",
        ]
        assert "A candidate label with its template has" in said[5]


def test_other_architectures_are_no_classifiers(tmp_path: Path) -> None:
    source = models.tiny_bert(tmp_path / "bert")
    error = refusal("classification", source, tmp_path / "artefact")
    assert error["code"] == "EXPORT_FAILED"
    assert "'BertModel' is no classifier" in error["message"]
    assert not (tmp_path / "artefact").exists()


def reference_answer(source: Path, question: str, context: str) -> tuple[float, str, int, int]:
    """The likeliest span by the model's own logits, over transformers' own windows."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForQuestionAnswering.from_pretrained(source).eval()
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=128,
        stride=64,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    answers = []
    for i, ids in enumerate(encoded["input_ids"]):
        inputs = {"input_ids": ids, "attention_mask": encoded["attention_mask"][i]}
        if "token_type_ids" in encoded:
            inputs["token_type_ids"] = encoded["token_type_ids"][i]
        with torch.no_grad():
            out = model(**{name: torch.tensor([value]) for name, value in inputs.items()})
        mine = np.array([number == 1 for number in encoded.sequence_ids(i)])
        kept = mine.copy()
        kept[0] = True  # the [CLS] that stands for "no answer" has a share of the probability
        start, end = (
            torch.softmax(logits[0].double().masked_fill(torch.tensor(~kept), -1e4), -1).numpy()
            for logits in (out.start_logits, out.end_logits)
        )
        for first in np.flatnonzero(mine):
            for last in range(first, min(first + 15, len(ids))):
                if mine[last]:
                    words = encoded.token_to_word(i, int(first)), encoded.token_to_word(i, last)
                    a = encoded.word_to_chars(i, words[0], 1).start
                    b = encoded.word_to_chars(i, words[1], 1).end
                    answers.append((float(start[first] * end[last]), context[a:b], a, b))
    return max(answers)


@pytest.mark.parametrize("roberta", [False, True], ids=["bert", "roberta"])
def test_answers_are_the_likeliest_spans(roberta: bool, tmp_path: Path) -> None:
    from backends.question_answering.reader import Reader

    source = pipeline_models.reader(tmp_path / "source", roberta=roberta)
    manifest = convert("question_answering", source, tmp_path / "artefact")
    assert manifest["question_answering"]["window"] == 128
    reader = Reader.open(tmp_path / "artefact")
    pairs = [(QUESTION, CONTEXT), ("who eats?", "the cat"), ("what?", CONTEXT[:90])]
    request = reader.read(
        *(
            np.array([text.encode() for text in side], np.object_)
            for side in zip(*pairs, strict=True)
        ),
        {},
    )
    assert len(request.questions[0].windows) > 2
    (found,) = reader.answer([request])
    for answer, (question, context) in zip(found, pairs, strict=True):
        score, text, start, end = reference_answer(source, question, context)
        assert answer.score == pytest.approx(score, rel=1e-4)
        assert (answer.text, answer.start, answer.end) == (text, start, end)
        assert context[start:end] == text


async def test_a_reader_in_triton(
    tmp_path: Path, triton: BackgroundTriton, triton_client: TritonClient
) -> None:
    source = pipeline_models.reader(tmp_path / "source")
    (source / "README.md").write_text("---\ndatasets:\n- squad_v2\n---\n# reader\n")
    manifest = convert("question_answering", source, tmp_path / "artefact")
    assert manifest["question_answering"]["may_have_no_answer"] is True
    async with served("reader", tmp_path / "artefact", triton, triton_client) as model:

        async def ask(question: str, context: str, **parameters: Any) -> dict[str, Any]:
            inputs: Any = {"text_input": [question], "context_input": [context]}
            return await model.infer(inputs, **parameters)

        found = await ask(QUESTION, CONTEXT, handle_impossible_answer=False)
        start, end = found["start"][0, 0], found["end"][0, 0]
        assert found["text_output"][0, 0].decode() == CONTEXT[start:end]
        assert reference_answer(source, QUESTION, CONTEXT)[2:] == (start, end)
        results = await asyncio.gather(
            ask(QUESTION, CONTEXT),
            ask(QUESTION, "  \n"),
            ask("", CONTEXT),
            ask("why " * 100, CONTEXT),
            ask(QUESTION, CONTEXT, handle_impossible_answer="no"),
            return_exceptions=True,
        )
        assert isinstance(results[0], dict)
        assert [str(result) for result in results[1:]] == [
            "context_input[0] must not be blank.",
            "text_input[0] must not be blank.",
            "text_input[0] has 300 tokens; this model reads questions of at most 60.",
            "Parameter handle_impossible_answer must be true or false, got 'no'.",
        ]


def test_images_are_classified_as_transformers_does(tmp_path: Path) -> None:
    from transformers import pipeline

    from backends.classification.classifier import Classifier
    from backends.errors import InputError

    source = pipeline_models.image_classifier(tmp_path / "source")
    manifest = convert("classification", source, tmp_path / "artefact")
    assert [tensor["name"] for tensor in manifest["inputs"]] == ["image_input"]
    classifier = Classifier.open(tmp_path / "artefact")
    noise = np.random.default_rng(5).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    images = [Image.fromarray(noise), Image.new("RGB", (40, 200), (200, 30, 30))]
    files = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    request = classifier.read({"image_input": np.array(files, np.object_)}, {})
    (found,) = classifier.classify([request])
    expected = pipeline("image-classification", str(source), device="cpu")(images, top_k=3)
    for row, entries in enumerate(expected):
        assert [b.decode() for b in found.labels[row]] == [entry["label"] for entry in entries]
        scores = [entry["score"] for entry in entries]
        np.testing.assert_allclose(found.scores[row], scores, atol=1e-4)
    with pytest.raises(InputError, match="takes image_input, and nothing else"):
        classifier.read({"text_input": np.array([b"a"], np.object_)}, {})
    damaged = classifier.read({"image_input": np.array([files[0][:99]], np.object_)}, {})
    bad, good = classifier.classify([damaged, request])
    assert isinstance(bad, InputError)
    assert good.labels.tolist() == found.labels.tolist()
