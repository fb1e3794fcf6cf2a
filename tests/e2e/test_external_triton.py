"""The control plane on a Triton that somebody else runs, its control APIs behind their secret."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.models import tiny_bert
from tests.service import Service

if TYPE_CHECKING:
    from pathlib import Path

    from controlplane.triton.client import TritonClient
    from tests.conftest import BackgroundTriton

pytestmark = [pytest.mark.e2e, pytest.mark.triton]

TINY = "tests/tiny-external"


async def test_install_and_infer_on_an_external_triton(
    triton: BackgroundTriton, triton_client: TritonClient, tmp_path: Path
) -> None:
    endpoints = triton.endpoints
    ((name, value),) = endpoints.http_headers.items()
    service = Service(
        tmp_path / "service",
        MODEL_REPOSITORY=str(triton.repository),
        TRITON_GRPC_URL=endpoints.grpc_url,
        TRITON_HTTP_URL=endpoints.http_url,
        TRITON_CONTROL_HEADER=f"{name}={value}",
    )
    source = tiny_bert(tmp_path / "source")
    try:
        service.start()
        with service.client() as client:
            assert client.status().triton["kind"] == "external"
            client.install(TINY, source_url=source.as_uri(), timeout=120)
            result = client.infer(TINY, {"text": "hello"})
            assert len(result.output_data["embedding"]) == result.output_data["dimension"]
            (loaded,) = client.status().loaded_models
            assert loaded.state == "loaded"
            client.install(TINY, "v2", timeout=120)
            switched = client.use(TINY, "v2")
            assert (switched.version, switched.previous_version) == ("v2", "main")
            assert switched.switch in ("live", "drained")
            assert client.infer(TINY, {"text": "hello"}).version == "v2"
            client.remove_version(TINY, "main")
            assert client.infer(TINY, {"text": "hello"}).version == "v2"
            assert value not in str(client.settings())
        assert "tritonserver" not in {p.name() for p in service.family()}
        assert service.stop() == 0
        assert value not in service.log
        # It is not our server: it goes on, without our models.
        assert await triton_client.live()
        ready = {entry.name for entry in await triton_client.index() if entry.state == "READY"}
        assert TINY.replace("/", "--") not in ready
    finally:
        service.end()
