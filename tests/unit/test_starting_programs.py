"""Programs that the server starts while gRPC's threads are at work."""

from __future__ import annotations

import subprocess
import sys

# In the place of the server: as many starts as break reliably where gRPC minds forks.
SERVER = """
import sys, types

def serve(settings):
    import asyncio, collections, grpc.aio, uvloop

    class Echo(grpc.GenericRpcHandler):
        def service(self, details):
            async def answer(request, context):
                return request
            return grpc.unary_unary_rpc_method_handler(answer)

    async def main():
        server = grpc.aio.server(handlers=(Echo(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ended = collections.Counter()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask = channel.unary_unary("/echo/echo")

            async def busy():
                while ended.total() < 250:
                    await ask(b"")

            asking = asyncio.create_task(busy())
            while ended.total() < 250:
                process = await asyncio.create_subprocess_exec("/bin/true")
                ended[await process.wait()] += 1
            await asking
        await server.stop(None)
        print(dict(ended))
        return 0

    return uvloop.run(main())

sys.modules["controlplane.app"] = types.SimpleNamespace(serve=serve)
from controlplane.cli.main import run
sys.exit(run(["serve"]))
"""


def test_they_start_whatever_grpc_does() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SERVER], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.strip() == "{0: 250}"
