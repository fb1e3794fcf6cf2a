"""audio2txt and txt2audio: speech to text and text to speech."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.inference.tasks.answers import (
    FILE_SCHEMA,
    NUMBER_SCHEMA,
    TEXT_SCHEMA,
    WHOLE_SCHEMA,
    arrays,
    base64_text,
    first,
    objects,
    text,
)
from controlplane.inference.tasks.examples import RECORDING
from controlplane.inference.tasks.inputs import Media, Text
from controlplane.inference.tasks.options import Flag, Whole, Word
from controlplane.inference.tasks.task import MAX_SLOW_ITEMS, Answer, Example, Task

if TYPE_CHECKING:
    from controlplane.inference.tasks.plan import Outputs

_SEGMENT = ("segment_text", "segment_start", "segment_end")


def _transcript(outputs: Outputs) -> Answer:
    answer: Answer = {"text": text(first(outputs, "text_output"))}
    if not all(outputs.get(name) for name in _SEGMENT):  # timestamps were not asked for
        return answer
    found = zip(*(outputs[name] for name in _SEGMENT), strict=True)
    segments = [{"start": start, "end": end, "text": text(said)} for said, start, end in found]
    return {**answer, "segments": segments}


AUDIO2TXT = Task(
    name="audio2txt",
    about="What is said in a recording.",
    inputs=(
        Media(
            name="audio",
            tensor="audio_input",
            kind="recording",
            about="A WAV, FLAC, OGG or MP3 file, or a list of these.",
        ),
    ),
    needs=(("audio",),),
    options=(
        Word(name="language", about="What language is spoken, en; left out, it is guessed."),
        Flag(name="timestamps", about="Answer with segments too."),
    ),
    outputs=("text_output", *_SEGMENT),
    answer=_transcript,
    result=objects(
        {
            "text": TEXT_SCHEMA,
            "segments": arrays(
                objects(
                    {
                        "start": {**NUMBER_SCHEMA, "description": "Seconds."},
                        "end": {**NUMBER_SCHEMA, "description": "Seconds."},
                        "text": TEXT_SCHEMA,
                    }
                )
            ),
        },
        optional=("segments",),
    ),
    max_items=MAX_SLOW_ITEMS,
    example=Example(
        input_data={"audio": RECORDING},
        parameters={"timestamps": True},
        output_data={
            "text": "Hello.",
            "segments": [{"start": 0.0, "end": 0.5, "text": "Hello."}],
        },
    ),
)


def _speech(outputs: Outputs) -> Answer:
    return {
        "audio": base64_text(first(outputs, "audio_output")),
        "format": "wav",
        "sample_rate": first(outputs, "sample_rate"),
    }


TXT2AUDIO = Task(
    name="txt2audio",
    about="Speech or sound from a text.",
    inputs=(
        Text(
            name="text",
            aliases=("prompt",),
            tensor="text_input",
            about="What is to be heard, or a list of that.",
        ),
    ),
    needs=(("text",),),
    options=(
        Word(name="voice", about="One of the model's voices, a name or number.", or_number=True),
        Whole(name="sample_rate", about="Samples per second.", least=4000, most=192_000),
    ),
    outputs=("audio_output", "sample_rate"),
    answer=_speech,
    result=objects({"audio": FILE_SCHEMA, "format": {"const": "wav"}, "sample_rate": WHOLE_SCHEMA}),
    max_items=MAX_SLOW_ITEMS,
    example=Example(
        input_data={"text": "Hello."},
        output_data={"audio": RECORDING, "format": "wav", "sample_rate": 16000},
    ),
)

TASKS = (AUDIO2TXT, TXT2AUDIO)
