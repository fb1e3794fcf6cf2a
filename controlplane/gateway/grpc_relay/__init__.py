"""A frame-level HTTP/2 relay for gRPC: asyncio alone, no gRPC library (docs/data-plane.md).

From the outside in: `server` (clients' connections) and `upstream` (connections to Triton) are the
two roles of `connection`, which keeps streams with their flow control (`stream`) on top of
`frames` and `headers`. `relayed`, `infer` and `streaming` join a client's stream to one of
Triton's; `message` cuts and reads what a client sends; `local` answers what is not relayed.
"""
