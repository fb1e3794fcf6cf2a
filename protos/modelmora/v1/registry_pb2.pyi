import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from protos.modelmora.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VersionStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERSION_STATUS_UNSPECIFIED: _ClassVar[VersionStatus]
    VERSION_STATUS_REGISTERED: _ClassVar[VersionStatus]
    VERSION_STATUS_DOWNLOADING: _ClassVar[VersionStatus]
    VERSION_STATUS_READY: _ClassVar[VersionStatus]
    VERSION_STATUS_FAILED: _ClassVar[VersionStatus]
    VERSION_STATUS_EXPORTING: _ClassVar[VersionStatus]
VERSION_STATUS_UNSPECIFIED: VersionStatus
VERSION_STATUS_REGISTERED: VersionStatus
VERSION_STATUS_DOWNLOADING: VersionStatus
VERSION_STATUS_READY: VersionStatus
VERSION_STATUS_FAILED: VersionStatus
VERSION_STATUS_EXPORTING: VersionStatus

class Model(_message.Message):
    __slots__ = ("model_id", "version", "task_type", "resource_requirements", "created_at", "updated_at", "display_name", "description", "status", "config", "id", "catalog_id", "versions", "source_url", "custom_params", "version_number", "pinned", "keep_loaded", "idle_ttl", "plugin_task")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    CATALOG_ID_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_URL_FIELD_NUMBER: _ClassVar[int]
    CUSTOM_PARAMS_FIELD_NUMBER: _ClassVar[int]
    VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    KEEP_LOADED_FIELD_NUMBER: _ClassVar[int]
    IDLE_TTL_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_TASK_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    task_type: _common_pb2.TaskType
    resource_requirements: _common_pb2.ResourceRequirements
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    display_name: str
    description: str
    status: VersionStatus
    config: _struct_pb2.Struct
    id: str
    catalog_id: str
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    source_url: str
    custom_params: _struct_pb2.Struct
    version_number: int
    pinned: bool
    keep_loaded: bool
    idle_ttl: float
    plugin_task: str
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., task_type: _Optional[_Union[_common_pb2.TaskType, str]] = ..., resource_requirements: _Optional[_Union[_common_pb2.ResourceRequirements, _Mapping]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., display_name: _Optional[str] = ..., description: _Optional[str] = ..., status: _Optional[_Union[VersionStatus, str]] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., id: _Optional[str] = ..., catalog_id: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ..., source_url: _Optional[str] = ..., custom_params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., version_number: _Optional[int] = ..., pinned: bool = ..., keep_loaded: bool = ..., idle_ttl: _Optional[float] = ..., plugin_task: _Optional[str] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("id", "model_id", "version", "checksum", "artifact_uri", "resource_requirements", "framework", "framework_version", "metadata", "created_at", "updated_at", "version_number", "status", "triton_version", "revision", "backend", "engine", "requirements_declared", "measured_memory_mb", "artefact_bytes", "artefact_checksum", "artefact", "error_message", "created_by", "trust_remote_code")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_URI_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    FRAMEWORK_FIELD_NUMBER: _ClassVar[int]
    FRAMEWORK_VERSION_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    VERSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TRITON_VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    REQUIREMENTS_DECLARED_FIELD_NUMBER: _ClassVar[int]
    MEASURED_MEMORY_MB_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    ARTEFACT_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    TRUST_REMOTE_CODE_FIELD_NUMBER: _ClassVar[int]
    id: str
    model_id: str
    version: str
    checksum: str
    artifact_uri: str
    resource_requirements: _common_pb2.ResourceRequirements
    framework: str
    framework_version: str
    metadata: _struct_pb2.Struct
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    version_number: int
    status: VersionStatus
    triton_version: int
    revision: str
    backend: str
    engine: str
    requirements_declared: bool
    measured_memory_mb: float
    artefact_bytes: int
    artefact_checksum: str
    artefact: _struct_pb2.Struct
    error_message: str
    created_by: str
    trust_remote_code: bool
    def __init__(self, id: _Optional[str] = ..., model_id: _Optional[str] = ..., version: _Optional[str] = ..., checksum: _Optional[str] = ..., artifact_uri: _Optional[str] = ..., resource_requirements: _Optional[_Union[_common_pb2.ResourceRequirements, _Mapping]] = ..., framework: _Optional[str] = ..., framework_version: _Optional[str] = ..., metadata: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., version_number: _Optional[int] = ..., status: _Optional[_Union[VersionStatus, str]] = ..., triton_version: _Optional[int] = ..., revision: _Optional[str] = ..., backend: _Optional[str] = ..., engine: _Optional[str] = ..., requirements_declared: bool = ..., measured_memory_mb: _Optional[float] = ..., artefact_bytes: _Optional[int] = ..., artefact_checksum: _Optional[str] = ..., artefact: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., error_message: _Optional[str] = ..., created_by: _Optional[str] = ..., trust_remote_code: bool = ...) -> None: ...

class RegisterModelRequest(_message.Message):
    __slots__ = ("model_id", "version", "task_type", "display_name", "description", "source_url", "resource_requirements", "config", "trust_remote_code", "plugin_task")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_URL_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    TRUST_REMOTE_CODE_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_TASK_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    task_type: _common_pb2.TaskType
    display_name: str
    description: str
    source_url: str
    resource_requirements: _common_pb2.ResourceRequirements
    config: _struct_pb2.Struct
    trust_remote_code: bool
    plugin_task: str
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., task_type: _Optional[_Union[_common_pb2.TaskType, str]] = ..., display_name: _Optional[str] = ..., description: _Optional[str] = ..., source_url: _Optional[str] = ..., resource_requirements: _Optional[_Union[_common_pb2.ResourceRequirements, _Mapping]] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., trust_remote_code: bool = ..., plugin_task: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("task_type", "status", "pagination", "plugin_task")
    TASK_TYPE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PAGINATION_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_TASK_FIELD_NUMBER: _ClassVar[int]
    task_type: _common_pb2.TaskType
    status: VersionStatus
    pagination: _common_pb2.PaginationRequest
    plugin_task: str
    def __init__(self, task_type: _Optional[_Union[_common_pb2.TaskType, str]] = ..., status: _Optional[_Union[VersionStatus, str]] = ..., pagination: _Optional[_Union[_common_pb2.PaginationRequest, _Mapping]] = ..., plugin_task: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "pagination")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PAGINATION_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    pagination: _common_pb2.PaginationResponse
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., pagination: _Optional[_Union[_common_pb2.PaginationResponse, _Mapping]] = ...) -> None: ...

class UpdateModelRequest(_message.Message):
    __slots__ = ("model_id", "display_name", "description", "config", "resource_requirements")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    display_name: str
    description: str
    config: _struct_pb2.Struct
    resource_requirements: _common_pb2.ResourceRequirements
    def __init__(self, model_id: _Optional[str] = ..., display_name: _Optional[str] = ..., description: _Optional[str] = ..., config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., resource_requirements: _Optional[_Union[_common_pb2.ResourceRequirements, _Mapping]] = ...) -> None: ...

class DeleteModelRequest(_message.Message):
    __slots__ = ("model_id", "force")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    force: bool
    def __init__(self, model_id: _Optional[str] = ..., force: bool = ...) -> None: ...

class DeleteModelResponse(_message.Message):
    __slots__ = ("model_id", "deleted")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    deleted: bool
    def __init__(self, model_id: _Optional[str] = ..., deleted: bool = ...) -> None: ...

class DownloadModelRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class DownloadModelResponse(_message.Message):
    __slots__ = ("model_id", "status", "message")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    status: VersionStatus
    message: str
    def __init__(self, model_id: _Optional[str] = ..., status: _Optional[_Union[VersionStatus, str]] = ..., message: _Optional[str] = ...) -> None: ...
