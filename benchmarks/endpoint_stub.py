"""An OpenAI-compatible server that answers each request after a fixed time; prints its base URL first.

python benchmarks/endpoint_stub.py [--latency 0.2]
"""

import argparse
import asyncio
import json

ANSWER = "The first answer is right and says why.\n" * 10 + "[[A]]"


async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, latency: float) -> None:
    """Answer the requests of one connection."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].split("\r\n")[0] or 0)
            body = json.loads(await reader.readexactly(length)) if length else {}
            if body:
                await asyncio.sleep(latency)
            message = {"role": "assistant", "content": ANSWER}
            content = json.dumps(
                {
                    "data": [{"id": "stub", "max_model_len": 32768}],
                    "model": "stub",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}] * body.get("n", 1),
                    "usage": {"prompt_tokens": 500, "completion_tokens": 100},
                }
            ).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n")
            writer.write(f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds from a request to its answer")
    latency = parser.parse_args().latency
    server = await asyncio.start_server(lambda *pair: respond(*pair, latency), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
