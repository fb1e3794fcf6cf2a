from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_TYPE_UNSPECIFIED: _ClassVar[TaskType]
    TASK_TYPE_TXT2EMBED: _ClassVar[TaskType]
    TASK_TYPE_TXT2TXT: _ClassVar[TaskType]
    TASK_TYPE_TXT2IMG: _ClassVar[TaskType]
    TASK_TYPE_IMG2TXT: _ClassVar[TaskType]
    TASK_TYPE_IMG2IMG: _ClassVar[TaskType]
    TASK_TYPE_AUDIO2TXT: _ClassVar[TaskType]
    TASK_TYPE_TXT2AUDIO: _ClassVar[TaskType]
    TASK_TYPE_CLASSIFICATION: _ClassVar[TaskType]
    TASK_TYPE_OBJECT_DETECTION: _ClassVar[TaskType]
    TASK_TYPE_QUESTION_ANSWERING: _ClassVar[TaskType]
    TASK_TYPE_IMG2EMBED: _ClassVar[TaskType]
    TASK_TYPE_CUSTOM: _ClassVar[TaskType]
    TASK_TYPE_PLUGIN: _ClassVar[TaskType]
TASK_TYPE_UNSPECIFIED: TaskType
TASK_TYPE_TXT2EMBED: TaskType
TASK_TYPE_TXT2TXT: TaskType
TASK_TYPE_TXT2IMG: TaskType
TASK_TYPE_IMG2TXT: TaskType
TASK_TYPE_IMG2IMG: TaskType
TASK_TYPE_AUDIO2TXT: TaskType
TASK_TYPE_TXT2AUDIO: TaskType
TASK_TYPE_CLASSIFICATION: TaskType
TASK_TYPE_OBJECT_DETECTION: TaskType
TASK_TYPE_QUESTION_ANSWERING: TaskType
TASK_TYPE_IMG2EMBED: TaskType
TASK_TYPE_CUSTOM: TaskType
TASK_TYPE_PLUGIN: TaskType

class ResourceRequirements(_message.Message):
    __slots__ = ("memory_mb", "gpu_vram_mb", "cpu_threads", "gpu_count", "min_memory_mb", "disk_space_mb")
    MEMORY_MB_FIELD_NUMBER: _ClassVar[int]
    GPU_VRAM_MB_FIELD_NUMBER: _ClassVar[int]
    CPU_THREADS_FIELD_NUMBER: _ClassVar[int]
    GPU_COUNT_FIELD_NUMBER: _ClassVar[int]
    MIN_MEMORY_MB_FIELD_NUMBER: _ClassVar[int]
    DISK_SPACE_MB_FIELD_NUMBER: _ClassVar[int]
    memory_mb: int
    gpu_vram_mb: int
    cpu_threads: int
    gpu_count: int
    min_memory_mb: int
    disk_space_mb: int
    def __init__(self, memory_mb: _Optional[int] = ..., gpu_vram_mb: _Optional[int] = ..., cpu_threads: _Optional[int] = ..., gpu_count: _Optional[int] = ..., min_memory_mb: _Optional[int] = ..., disk_space_mb: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "details", "trace_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    details: _struct_pb2.Struct
    trace_id: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., details: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., trace_id: _Optional[str] = ...) -> None: ...

class ErrorResponse(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: Error
    def __init__(self, error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class PaginationRequest(_message.Message):
    __slots__ = ("page", "page_size")
    PAGE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    page: int
    page_size: int
    def __init__(self, page: _Optional[int] = ..., page_size: _Optional[int] = ...) -> None: ...

class PaginationResponse(_message.Message):
    __slots__ = ("total", "page", "page_size", "total_pages")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_PAGES_FIELD_NUMBER: _ClassVar[int]
    total: int
    page: int
    page_size: int
    total_pages: int
    def __init__(self, total: _Optional[int] = ..., page: _Optional[int] = ..., page_size: _Optional[int] = ..., total_pages: _Optional[int] = ...) -> None: ...
