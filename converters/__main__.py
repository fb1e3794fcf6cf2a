"""`python -m converters convert …`: one conversion per process, told in JSON lines.

The control plane spawns it, so that torch's memory goes with it. Lines on stdout are the protocol
of `converters.progress`; stderr is for people who look into a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from converters.errors import (
    ConversionError,
    EngineUnavailable,
    ExportFailed,
    InsufficientDisk,
    one_line,
)
from converters.progress import EventStream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Full, over quota, over the process's file size limit.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_EXAMPLE = """example:
  python -m converters convert --task txt2embed --source ./all-MiniLM-L6-v2 --output ./artefact
"""


def main(arguments: Sequence[str] | None = None, out: TextIO | None = None) -> int:
    """Run one command; 0 on success, 1 with an error line, 2 for a faulty command line."""
    options = _parser().parse_args(arguments)
    events = EventStream(out or sys.stdout)
    try:
        events.result(_convert(options, events))
    except ConversionError as error:
        traceback.print_exc()
        events.error(error)
        return 1
    return 0


def _convert(options: argparse.Namespace, events: EventStream) -> dict[str, object]:
    from converters.conversion import Conversion, find_converter
    from converters.manifest import Identity

    identity = Identity(
        model_id=options.model_id or options.source.resolve().name,
        version=options.version,
        revision=options.revision,
        source_checksum=options.source_checksum,
    )
    try:
        with _place_for_code(options):
            convert = find_converter(options.task)
            conversion = Conversion(
                task=options.task,
                source=options.source,
                output=options.output,
                identity=identity,
                events=events,
                allow_pickle=options.allow_pickle,
                trusted=options.trust_remote_code,
                threads=options.threads,
                engine=options.engine,
                precision=options.precision,
            )
            try:
                return convert(conversion)
            except EngineUnavailable as error:
                if not options.or_best:
                    raise
                events.progress("load", 0.0, f"measuring instead: {error}")
                return convert(replace(conversion, engine=None, precision=None))
    except ConversionError:
        raise
    except OSError as error:
        raise _about_files(error, options.output) from error
    except MemoryError as error:
        raise ExportFailed("The conversion ran out of memory.") from error
    except Exception as error:
        raise ExportFailed(
            f"The conversion broke: {type(error).__name__}: {one_line(error)}."
        ) from error


@contextlib.contextmanager
def _place_for_code(options: argparse.Namespace) -> Iterator[None]:
    """Where transformers copies trusted code to before it imports it: beside the output, and gone
    with it; not in the user's cache, where the next conversion would find it."""
    if not options.trust_remote_code:
        yield
        return
    with tempfile.TemporaryDirectory(
        prefix=".code-", dir=options.output.absolute().parent
    ) as place:
        os.environ["HF_MODULES_CACHE"] = place  # read when transformers is imported
        yield


def _about_files(error: OSError, output: Path) -> ConversionError:
    if error.errno in _NO_SPACE:
        return InsufficientDisk(str(output.parent), shutil.disk_usage(output.parent).free)
    return ExportFailed(f"The conversion broke: {error.strerror or error} ({error.filename}).")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m converters", description=__doc__)
    convert = parser.add_subparsers(required=True).add_parser(
        "convert",
        help="turn a model's folder into an artefact",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("--task", required=True, help="e.g. txt2embed; see docs/extending.md")
    convert.add_argument("--source", type=Path, required=True, help="the model's folder")
    convert.add_argument("--output", type=Path, required=True, help="must not exist")
    convert.add_argument("--model-id", help="default: the source folder's name")
    convert.add_argument("--version", default="main")
    convert.add_argument("--revision", help="the commit the version stands for")
    convert.add_argument("--source-checksum", help="sha256:… of the source's files")
    convert.add_argument(
        "--allow-pickle", action="store_true", help="read pickled weights of a trusted source"
    )
    convert.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python files of the model's folder that its config.json names",
    )
    convert.add_argument("--threads", type=int, help="default: what torch takes")
    convert.add_argument("--engine", help="default: the fastest that passes its accuracy gate")
    convert.add_argument("--precision", help="fp32, bf16, fp16 or int8; default: as --engine")
    convert.add_argument(
        "--or-best",
        action="store_true",
        help="where this machine does not have that engine: as without --engine and --precision",
    )
    return parser


def _alone_on_stdout() -> TextIO:
    """The real stdout for events; whatever libraries print goes to stderr from now on."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return events


def _offline() -> None:
    # Before transformers is imported, which reads them once.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"


if __name__ == "__main__":
    _offline()
    sys.exit(main(out=_alone_on_stdout()))
