"""The embedded server: real processes, killed in every way."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.triton


async def test_serves_an_echo_model(triton, triton_client):
    name = triton.models.echo()
    await triton_client.load(name, timeout=30)
    text = np.array([["hé"], [""]], dtype=object)
    answer = await triton_client.infer(name, 1, {"text_input": text}, ["text_output"], timeout=10)
    assert answer["text_output"].tolist() == [["hé".encode()], [b""]]
    assert len(triton.server.stub_pids(name, 1)) == 1
