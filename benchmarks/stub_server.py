"""A chat server that answers after a fixed time and costs its core as little as it can.

The tests' stub server takes longer for a request than the clients that are compared: what would be
measured is the server. This one speaks just enough HTTP/1.1 and has its answers ready.
`python benchmarks/stub_server.py 50` prints its address and answers each request after 50 ms.
"""

from __future__ import annotations

import asyncio
import functools
import sys

import orjson

TEXT = "An answer of a dozen words, as long as a short sentence is."
TOKENS = 12


@functools.cache
def response(choices: int) -> bytes:
    """Return a whole HTTP response with so many choices."""
    message = {"role": "assistant", "content": TEXT}
    usage = {"prompt_tokens": 2, "completion_tokens": TOKENS * choices}
    body = {
        "id": "chatcmpl-stub",
        "object": "chat.completion",
        "created": 0,
        "model": "stub-model",
        "choices": [
            {"index": index, "message": message, "finish_reason": "stop", "logprobs": None}
            for index in range(choices)
        ],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }
    content = orjson.dumps(body)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return f"{head}\r\n\r\n".encode() + content


class Connection(asyncio.Protocol):
    """One client's connection: requests on it come one after the other."""

    def __init__(self, latency_seconds: float) -> None:
        self.latency_seconds, self.received = latency_seconds, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer later if a request is whole."""
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) >= int(length or 0):
            self.received = b""
            answer = response(orjson.loads(body).get("n", 1))
            loop = asyncio.get_running_loop()
            loop.call_later(self.latency_seconds, self.transport.write, answer)


async def serve(latency_seconds: float) -> None:
    """Serve until killed, on a free loopback port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(latency_seconds), "127.0.0.1", 0, backlog=1024
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]) / 1000))
