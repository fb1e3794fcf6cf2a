"""Every failure ModelMora reports, as facts.

One hierarchy; each class carries the code of the error envelope (domain §7) and builds its own
message from the fact. Transports map classes to status codes in one table each
(`gateway/errors.py`); nothing here knows HTTP or gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ModelMoraError(Exception):
    """Base of all expected failures.

    Attributes:
        code: the stable code of the error envelope.
        details: machine-readable facts for the envelope's `details`, JSON-serialisable.
        retry_after: seconds after which a retry makes sense, or None.
    """

    code: ClassVar[str] = "INTERNAL_ERROR"
    retry_after: float | None = None

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = {k: v for k, v in details.items() if v is not None}


# -- input -------------------------------------------------------------------------------------


class ValidationFailed(ModelMoraError):
    """Input breaks a rule. `fields` maps a dotted field path to its messages."""

    code = "VALIDATION_ERROR"

    def __init__(self, fields: Mapping[str, Sequence[str]], message: str | None = None) -> None:
        listed = {name: list(messages) for name, messages in fields.items()}
        first = "; ".join(f"{name}: {', '.join(msgs)}" for name, msgs in listed.items())
        super().__init__(message or first or "The input is not valid.", fields=listed)

    @classmethod
    def field(cls, name: str, message: str) -> ValidationFailed:
        """One message on one field."""
        return cls({name: [message]})


class InvalidInput(ModelMoraError):
    """The input of an inference does not match the task's schema."""

    code = "INVALID_INPUT"

    def __init__(self, message: str, *, field: str | None = None, what: str = "") -> None:
        """`what`: the message without the field in front of it, where it has one."""
        super().__init__(message, fields={field: [what or message]} if field else None)


class BatchSizeExceeded(ModelMoraError):
    """More items in one request than are taken."""

    code = "BATCH_SIZE_EXCEEDED"

    def __init__(self, field: str, count: int, limit: int) -> None:
        super().__init__(
            f"{field} holds {count} items; at most {limit} are taken in one request. "
            "Send them in several requests.",
            fields={field: [f"at most {limit} items"]},
            count=count,
            limit=limit,
        )


class InvalidModelId(ModelMoraError):
    code = "INVALID_MODEL_ID"

    def __init__(self, text: str, why: str) -> None:
        shown = text if len(text) <= 100 else text[:100] + "…"
        super().__init__(
            f"{shown!r} is not a model id: {why}. A model id is ORG/NAME, "
            "for example sentence-transformers/all-MiniLM-L6-v2.",
            fields={"model_id": [why]},
        )


class InvalidTaskType(ModelMoraError):
    code = "INVALID_TASK_TYPE"

    def __init__(self, text: str, supported: Sequence[str], why: str | None = None) -> None:
        """
        Args:
            why: what is wrong with the plugin that would serve it.
        """
        refused = f"cannot be served: {why}" if why else "is not a supported task type"
        super().__init__(
            f"{text!r} {refused}. Supported: {', '.join(supported)}.",
            fields={"task_type": [f"must be one of {', '.join(supported)}"]},
        )


class InvalidChecksum(ModelMoraError):
    code = "INVALID_CHECKSUM"

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text!r} is not a checksum: write sha256: and 64 lowercase hexadecimal digits.",
            fields={"checksum": ["must be sha256: followed by 64 hexadecimal digits"]},
        )


# -- registry ----------------------------------------------------------------------------------


class ModelNotFound(ModelMoraError):
    code = "MODEL_NOT_FOUND"

    def __init__(self, model_id: str) -> None:
        super().__init__(
            f"Model {model_id!r} is not registered. Register it with: modelmora install {model_id}",
            model_id=model_id,
        )


class ModelAlreadyExists(ModelMoraError):
    code = "MODEL_ALREADY_EXISTS"

    def __init__(self, model_id: str) -> None:
        super().__init__(f"Model {model_id!r} is already registered.", model_id=model_id)


class VersionNotFound(ModelMoraError):
    code = "VERSION_NOT_FOUND"

    def __init__(self, model_id: str, version: str) -> None:
        super().__init__(
            f"Model {model_id!r} has no version {version!r}.", model_id=model_id, version=version
        )


class VersionAlreadyExists(ModelMoraError):
    code = "VERSION_ALREADY_EXISTS"

    def __init__(self, model_id: str, version: str, why: str = "is already registered") -> None:
        super().__init__(
            f"Version {version!r} of model {model_id!r} {why}.", model_id=model_id, version=version
        )


class ModelNotReady(ModelMoraError):
    """The model is registered but has no artefact to serve (yet)."""

    code = "MODEL_NOT_READY"

    def __init__(self, model_id: str, version: str, status: str, reason: str | None = None) -> None:
        hint = {
            "registered": f"Download it with: modelmora install {model_id}",
            "downloading": "Its download is running; try again when it has ended.",
            "exporting": "Its conversion is running; try again when it has ended.",
            "failed": f"Its installation failed{': ' + reason.rstrip('.') if reason else ''}.",
        }.get(status, "")
        super().__init__(
            f"Model {model_id!r} version {version!r} is {status}, not ready. {hint}".strip(),
            model_id=model_id,
            version=version,
            status=status,
        )


class InstallInProgress(ModelMoraError):
    code = "INSTALL_IN_PROGRESS"

    def __init__(self, model_id: str) -> None:
        super().__init__(
            f"Model {model_id!r} is being installed; wait until that has ended.", model_id=model_id
        )


class ConcurrentModification(ModelMoraError):
    code = "CONCURRENT_MODIFICATION"

    def __init__(self, what: str, expected: int) -> None:
        super().__init__(
            f"{what} was changed by somebody else (expected revision {expected}). "
            "Read it again and repeat the change.",
            expected_version=expected,
        )


class PreconditionFailed(ModelMoraError):
    """The caller's If-Match names another state of the model than the present one."""

    code = "PRECONDITION_FAILED"

    def __init__(self, model_id: str, expected: str, current: str) -> None:
        super().__init__(
            f"Model {model_id!r} is no longer as it was when you read it. "
            "Read it again and repeat the change.",
            model_id=model_id,
            if_match=expected[:200],
            etag=current,
        )


class CurrentVersionProtected(ModelMoraError):
    code = "CURRENT_VERSION_PROTECTED"

    def __init__(self, model_id: str, version: str) -> None:
        super().__init__(
            f"Version {version!r} is the current version of {model_id!r} and cannot be removed. "
            "Make another version current first.",
            model_id=model_id,
            version=version,
        )


class ModelPinned(ModelMoraError):
    """An upgrade of a model that is to stay at its version."""

    code = "MODEL_PINNED"

    def __init__(self, model_id: str, version: str) -> None:
        super().__init__(
            f"Model {model_id!r} is pinned to version {version!r}. "
            f"Let it move again with: modelmora unpin {model_id}",
            model_id=model_id,
            version=version,
        )


class ArtifactNotAccessible(ModelMoraError):
    """The source, or a file of it that is needed, cannot be had."""

    code = "ARTIFACT_NOT_ACCESSIBLE"


class DownloadFailed(ModelMoraError):
    code = "DOWNLOAD_FAILED"


class ChecksumMismatch(ModelMoraError):
    code = "CHECKSUM_MISMATCH"

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__(
            f"{what} is not what was recorded: expected {expected}, found {actual}.",
            expected=expected,
            actual=actual,
        )


class UnsafeWeights(ModelMoraError):
    """The source offers only pickled weights, which can run code when read."""

    code = "UNSAFE_WEIGHTS"

    def __init__(self, model_id: str, files: Sequence[str]) -> None:
        super().__init__(
            f"{model_id} offers its weights only as pickles ({', '.join(files[:3])}), "
            "which can run code when they are read. Use a revision with safetensors, "
            "or trust this source with MODELMORA_ALLOW_PICKLE=true.",
            model_id=model_id,
            files=list(files),
        )


class SourceRefused(ModelMoraError):
    """The source can be had, but a rule of safety forbids it; the message names the way out."""

    code = "SOURCE_REFUSED"


class RemoteCodeRefused(SourceRefused):
    """The source brings its own code, and the version or the server does not trust it."""

    code = "REMOTE_CODE_REFUSED"


class ExportFailed(ModelMoraError):
    """The converter refused or broke; nothing was published."""

    code = "EXPORT_FAILED"


class InsufficientDisk(ModelMoraError):
    code = "INSUFFICIENT_DISK"

    def __init__(self, path: str, needed_mb: float, free_mb: float) -> None:
        super().__init__(
            f"Not enough disk space in {path}: {needed_mb:.0f} MB needed, {free_mb:.0f} MB free.",
            path=path,
            needed_mb=round(needed_mb, 1),
            free_mb=round(free_mb, 1),
        )


class SourceBeingRead(ModelMoraError):
    """An archive that tells the model's task has not come whole yet; its download goes on."""

    code = "SOURCE_BEING_READ"
    retry_after = 1.0

    def __init__(self, model_id: str, progress: str, fraction: float | None) -> None:
        super().__init__(
            f"The source of {model_id} is still being downloaded, since its task is read from it "
            f"({progress}). Send the same request again, or name the task.",
            model_id=model_id,
            progress=progress,
            fraction=fraction,
        )


class OperationNotFound(ModelMoraError):
    code = "OPERATION_NOT_FOUND"

    def __init__(self, operation_id: str) -> None:
        super().__init__(
            f"There is no operation {operation_id!r}. All there are: modelmora operations list",
            operation_id=operation_id,
        )


class OperationFinished(ModelMoraError):
    """What has ended cannot be cancelled."""

    code = "OPERATION_FINISHED"

    def __init__(self, operation_id: str, status: str) -> None:
        super().__init__(
            f"Operation {operation_id} has {status} and cannot be cancelled any more."
            if status != "cancelled"
            else f"Operation {operation_id} is cancelled already.",
            operation_id=operation_id,
            status=status,
        )


class TritonModelInvalid(ModelMoraError):
    """The folder of a ready-made Triton model breaks rules; each is named by file and field."""

    code = "TRITON_MODEL_INVALID"

    def __init__(self, where: str, faults: Mapping[str, str]) -> None:
        listed = "; ".join(f"{place}: {what}" for place, what in list(faults.items())[:10])
        super().__init__(
            f"{where} cannot be served as a Triton model. {listed}.",
            fields={place: [what] for place, what in faults.items()},
        )


class NoRestInference(ModelMoraError):
    """The model's tensors are its own, and a single request in JSON cannot be put to it."""

    code = "NO_REST_INFERENCE"

    def __init__(self, model_id: str, task_type: str) -> None:
        super().__init__(
            f"Model {model_id!r} ({task_type}) cannot be asked over REST: it keeps sequences, or "
            "its tensors are not known or have no form in JSON. Call it over Triton's protocol: "
            f"POST /v2/models/{model_id.replace('/', '--')}"
            "/infer, or any Triton client over HTTP or gRPC.",
            model_id=model_id,
            task_type=task_type,
        )


class PluginUnavailable(ModelMoraError):
    """What a model needs of a plugin is not installed, or cannot be used."""

    code = "PLUGIN_UNAVAILABLE"

    def __init__(self, kind: str, name: str, why: str) -> None:
        super().__init__(f"The {kind} {name!r} cannot be used: {why}.", kind=kind, name=name)


# -- locks -------------------------------------------------------------------------------------


class InvalidLock(ValidationFailed):
    """A lock, or the file of one, breaks a rule; each message says where and what to do."""

    code = "INVALID_LOCK"


class LockNotFound(ModelMoraError):
    code = "LOCK_NOT_FOUND"

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no lock {name!r}. See: modelmora lock list", name=name)


class LockAlreadyExists(ModelMoraError):
    code = "LOCK_ALREADY_EXISTS"

    def __init__(self, name: str) -> None:
        super().__init__(f"There is a lock {name!r} already.", name=name)


class ModelLocked(ModelMoraError):
    """An active lock protects the model, or this version of it."""

    code = "MODEL_LOCKED"

    def __init__(self, what: str, locks: Sequence[str]) -> None:
        names = ", ".join(locks)
        super().__init__(
            f"{what} is locked by {names}. Delete or deactivate that lock first, or use force.",
            locks=list(locks),
        )


class LockDiffers(ModelMoraError):
    """This machine is not what the lock says, and must not be changed."""

    code = "LOCK_DIFFERS"

    def __init__(self, name: str, differences: Sequence[str]) -> None:
        super().__init__(
            f"This machine differs from the lock {name!r}: {'; '.join(differences)}.",
            name=name,
            differences=list(differences),
        )


class LockDrift(ModelMoraError):
    """Files are not as a lock says."""

    code = "LOCK_DRIFT"

    def __init__(self, name: str, count: int) -> None:
        things = "1 thing is" if count == 1 else f"{count} things are"
        super().__init__(f"{things} not as locked in {name!r}.", name=name, count=count)


class SyncFailed(ModelMoraError):
    """A machine could not be made equal to a lock."""

    code = "SYNC_FAILED"


# -- lifecycle ---------------------------------------------------------------------------------


class ModelNotLoaded(ModelMoraError):
    code = "MODEL_NOT_LOADED"

    def __init__(self, model_id: str) -> None:
        super().__init__(f"Model {model_id!r} is not loaded.", model_id=model_id)


class ModelAlreadyLoaded(ModelMoraError):
    code = "MODEL_ALREADY_LOADED"

    def __init__(self, model_id: str, why: str = "is already loaded") -> None:
        super().__init__(f"Model {model_id!r} {why}.", model_id=model_id)


class InsufficientMemory(ModelMoraError):
    """No room within the budget, now (`retry_after` set) or ever (None)."""

    code = "INSUFFICIENT_MEMORY"

    def __init__(
        self,
        model_id: str,
        need_mb: float,
        budget_mb: float,
        *,
        ever: bool = False,
        kept_mb: float = 0.0,
        kept_models: int = 0,
    ) -> None:
        if kept_models:
            message = (
                f"Model {model_id!r} needs {need_mb:.0f} MB, and {kept_models} models that are to "
                f"stay hold {kept_mb:.0f} MB of the budget of {budget_mb:.0f} MB. Let one go with "
                "`modelmora release MODEL`, or raise MODELMORA_MAX_MEMORY_MB, MODELMORA_MAX_MODELS."
            )
        elif ever:
            message = (
                f"Model {model_id!r} needs {need_mb:.0f} MB, more than the whole budget of "
                f"{budget_mb:.0f} MB (MODELMORA_MAX_MEMORY_MB)."
            )
        else:
            message = (
                f"Model {model_id!r} needs {need_mb:.0f} MB and every loaded model is busy or "
                f"kept; the budget is {budget_mb:.0f} MB "
                "(MODELMORA_MAX_MEMORY_MB, MODELMORA_MAX_MODELS)."
            )
            self.retry_after = 1.0
        super().__init__(
            message, model_id=model_id, need_mb=round(need_mb, 1), budget_mb=round(budget_mb, 1)
        )


class KeptModelsTooLarge(ModelMoraError):
    """The models that are to stay in memory do not fit into it together."""

    code = "KEPT_MODELS_TOO_LARGE"

    def __init__(
        self, model_id: str, need_mb: float, count: int, budget_mb: float, max_models: int
    ) -> None:
        super().__init__(
            f"Model {model_id!r} cannot be kept: with it {count} models that need {need_mb:.0f} MB "
            f"would have to stay, and the budget is {budget_mb:.0f} MB and {max_models} models "
            "(MODELMORA_MAX_MEMORY_MB, MODELMORA_MAX_MODELS). Let one go: modelmora release MODEL",
            model_id=model_id,
            kept_mb=round(need_mb, 1),
            kept_models=count,
            budget_mb=round(budget_mb, 1),
            max_models=max_models,
        )


class LoadTimeout(ModelMoraError):
    code = "LOAD_TIMEOUT"
    retry_after = 5.0

    def __init__(self, model_id: str, seconds: float) -> None:
        super().__init__(
            f"Model {model_id!r} was not loaded within {seconds:g} s.",
            model_id=model_id,
            timeout_seconds=seconds,
        )


class LoadFailed(ModelMoraError):
    code = "LOAD_FAILED"

    def __init__(self, model_id: str, reason: str) -> None:
        super().__init__(
            f"Model {model_id!r} could not be loaded: {reason}", model_id=model_id, reason=reason
        )


class LoadInterrupted(LoadFailed):
    """The model's process died while it was loaded: the next attempt may go well."""

    code = "LOAD_INTERRUPTED"
    retry_after = 5.0


class ModelUnhealthy(ModelMoraError):
    code = "MODEL_UNHEALTHY"
    retry_after = 5.0

    def __init__(self, model_id: str, reason: str) -> None:
        super().__init__(
            f"Model {model_id!r} does not answer: {reason}", model_id=model_id, reason=reason
        )


class InvalidStateTransition(ModelMoraError):
    code = "INVALID_STATE_TRANSITION"

    def __init__(self, model_id: str, current: str, target: str) -> None:
        super().__init__(
            f"Model {model_id!r} is {current} and cannot become {target}.",
            model_id=model_id,
            current=current,
            target=target,
        )


# -- inference ---------------------------------------------------------------------------------


class InferenceTimeout(ModelMoraError):
    code = "INFERENCE_TIMEOUT"

    def __init__(self, model_id: str, seconds: float) -> None:
        super().__init__(
            f"Model {model_id!r} gave no answer within {seconds:g} s.",
            model_id=model_id,
            timeout_seconds=seconds,
        )


class InferenceFailed(ModelMoraError):
    code = "INFERENCE_FAILED"

    def __init__(self, model_id: str, reason: str) -> None:
        super().__init__(f"Model {model_id!r} failed: {reason}", model_id=model_id, reason=reason)


class QueueFull(ModelMoraError):
    """So many requests wait for the model that another would only time out."""

    code = "QUEUE_FULL"
    retry_after = 1.0

    def __init__(self, model_id: str, waiting: int) -> None:
        super().__init__(
            f"{waiting} requests are waiting for model {model_id!r} already; try again later.",
            model_id=model_id,
            waiting=waiting,
        )


# -- the service -------------------------------------------------------------------------------


class ServiceUnavailable(ModelMoraError):
    """Something we depend on (Triton, the database) does not answer now."""

    code = "SERVICE_UNAVAILABLE"
    retry_after = 2.0


class NoDatabase(ModelMoraError):
    """There is no database file where one was named."""

    code = "NO_DATABASE"

    def __init__(self, path: str) -> None:
        super().__init__(f"There is no database at {path}.", path=path)


class DatabaseDamaged(ModelMoraError):
    """A database file, or a backup, is not sound."""

    code = "DATABASE_DAMAGED"

    def __init__(self, path: str, what: str) -> None:
        super().__init__(
            f"The database {path} is damaged or not ModelMora's: {what}. Use another backup; "
            "modelmora db check FILE tells more.",
            path=path,
        )


class DatabaseInUse(ModelMoraError):
    """A server runs on the data directory, so its database cannot be replaced."""

    code = "DATABASE_IN_USE"

    def __init__(self, data_dir: str, what: str) -> None:
        super().__init__(
            f"ModelMora is running on the data directory {data_dir}: stop it, then {what}.",
            data_dir=data_dir,
        )


class BackupExists(ModelMoraError):
    code = "BACKUP_EXISTS"

    def __init__(self, path: str) -> None:
        super().__init__(f"There is a file {path} already; choose another name.", path=path)


class DatabaseUnusable(ModelMoraError):
    """The database was damaged, replaced or removed under the running server.

    Attributes:
        what: how it is, as a phrase: "was removed".
        remedy: what to do.
    """

    code = "DATABASE_UNUSABLE"

    def __init__(self, path: str, what: str, rescued: str | None = None) -> None:
        """`rescued`: a backup of what it held until then."""
        self.what = what
        self.remedy = f"Stop the server, then: modelmora db restore {rescued or 'BACKUP'}"
        super().__init__(
            f"The database{path and ' ' + path} {what} while ModelMora runs. Models in memory are "
            f"served on. {self.remedy}",
            path=path or None,
            rescued=rescued,
        )


class StartupError(ModelMoraError):
    """The service cannot start; the message says what to do. Shown as one line on the CLI."""

    code = "STARTUP_FAILED"


class SettingsError(StartupError):
    """A setting is wrong. `key` is the setting's name as the user wrote it."""

    code = "INVALID_SETTING"

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}", fields={key: [message]})
        self.key = key
