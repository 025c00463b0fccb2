#!/usr/bin/env python3
"""Load on `lserve serve`: many clients at once, prompts of mixed lengths, random disconnects.

    load.py PROGRAM MODEL_DIR [--clients 200] [--seconds 5] [--longest 4000] [--seed 1]

Every client asks in a document of random length for the code that stands in it, over one of three
endpoints, streaming or not, and checks the answer; some leave at a random moment, with a goodbye or
a reset. At the end nothing may be left: no request, no connection, no KV page, and the server ends
on SIGTERM with status 0. Standard library only; MODEL_DIR is models/needle, which can answer.
Exit status 0: all of it held. What was seen (counts, latencies, memory) is printed either way.
"""
import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

ADMIN_KEY = "load-admin"
NAMES = ["cedar", "amber", "harbor", "falcon", "meadow"]
# Shares of the clients' requests, and words of their documents.
LENGTHS = [(0.80, 10, 120), (0.17, 200, 600), (0.03, 1500, 4000)]
LEAVES = 0.3
LEAVES_WITHIN_SECONDS = 0.5


class Failure(Exception):
    pass


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body


async def read_reply(reader):
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readline()).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Reply(int(head[0].split()[1]), headers, body.decode())


def request_bytes(path, body=None, key=""):
    data = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\n"
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    return (head + f"Content-Length: {len(data)}\r\n\r\n").encode() + data


async def ask(port, path, body=None, key=""):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request_bytes(path, body, key))
        return await read_reply(reader)
    finally:
        writer.close()


def make_question(rng, longest):
    """A body, its path, and the code that the answer has to hold."""
    share, words = rng.random(), 0
    for part, low, high in LENGTHS:
        words = rng.randint(min(low, longest), min(high, longest))
        share -= part
        if share < 0:
            break
    name, code = rng.choice(NAMES), rng.randint(10000, 99999)
    filler = [f"word{rng.randrange(97)}{'.' if i % 11 == 10 else ''}" for i in range(words)]
    filler.insert(rng.randrange(words), f". The access code for {name} is {code}.")
    question = f"{' '.join(filler)}\n\nWhat is the access code for {name}?"
    body = {"model": "needle", "max_tokens": 24, "temperature": 0, "stream": rng.random() < 0.5}
    path = rng.choice(["/v1/chat/completions", "/v1/messages", "/v1/responses"])
    if path == "/v1/responses":
        body["max_output_tokens"] = body.pop("max_tokens")
        body["input"] = question
    else:
        body["messages"] = [{"role": "user", "content": question}]
    return path, body, str(code)


def stream_text(path, body):
    """The text of a stream, which must have come to its end."""
    events = [line[6:] for line in body.split("\n") if line.startswith("data: ")]
    end = {"/v1/chat/completions": "[DONE]", "/v1/messages": '"message_stop"'}
    if not events or end.get(path, '"response.completed"') not in events[-1]:
        raise Failure(f"a stream of {path} has no end: {body[-300:]!r}")
    text = ""
    for event in events:
        if event == "[DONE]":
            continue
        event = json.loads(event)
        if path == "/v1/chat/completions":
            for choice in event.get("choices", []):
                text += choice["delta"].get("content") or ""
        elif path == "/v1/messages":
            text += event.get("delta", {}).get("text", "") or ""
        elif event.get("type") == "response.output_text.delta":
            text += event["delta"]
    return text


def whole_text(path, body):
    reply = json.loads(body)
    if path == "/v1/chat/completions":
        return reply["choices"][0]["message"]["content"]
    content = reply["content"] if path == "/v1/messages" else reply["output"][0]["content"]
    return content[0]["text"]


class Load:
    def __init__(self, port, options):
        self.port, self.clients, self.seed = port, options.clients, options.seed
        self.longest = options.longest
        self.end = time.monotonic() + options.seconds
        self.answered = self.left = self.refused = 0
        self.wrong = []
        self.latencies = []

    async def leave(self, rng, data):
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        # Some do not even finish what they say.
        writer.write(data if rng.random() < 0.8 else data[: rng.randrange(len(data))])
        await asyncio.sleep(rng.random() * LEAVES_WITHIN_SECONDS)
        if rng.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        self.left += 1

    async def answer(self, path, body, code):
        began = time.monotonic()
        while True:
            reply = await ask(self.port, path, body)
            if reply.status != 429:
                break
            if int(reply.headers.get("retry-after", "0")) < 1:
                raise Failure("a 429 without Retry-After")
            self.refused += 1
            await asyncio.sleep(1)
        if reply.status != 200:
            raise Failure(f"{path}: status {reply.status}: {reply.body[:300]}")
        text = stream_text(path, reply.body) if body["stream"] else whole_text(path, reply.body)
        if code not in text:
            raise Failure(f"{path}: expected {code} in the answer, got {text!r}")
        self.answered += 1
        self.latencies.append(time.monotonic() - began)

    async def client(self, index):
        rng = random.Random(self.seed * 100003 + index)
        await asyncio.sleep(rng.random() * 0.5)
        while time.monotonic() < self.end and len(self.wrong) < 10:
            path, body, code = make_question(rng, self.longest)
            try:
                if rng.random() < LEAVES:
                    await self.leave(rng, request_bytes(path, body))
                else:
                    await self.answer(path, body, code)
            except (Failure, OSError, EOFError, ValueError, KeyError) as problem:
                self.wrong.append(f"{type(problem).__name__}: {problem}")

    async def run(self):
        await asyncio.gather(*(self.client(i) for i in range(self.clients)))


def metric(text, name):
    values = re.findall(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
    if not values:
        raise Failure(f"/metrics has no {name}")
    return sum(float(value) for value in values)


def resident_mib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024


async def wait_until_empty(port):
    """Waits for what must be 0 again, pages of kept prefixes given up; raises what is not."""
    names = ["vllm:num_requests_running", "vllm:num_requests_waiting", "lserve:tokens_waiting",
             "lserve:kv_bytes_in_use"]
    deadline = time.monotonic() + 60
    while True:
        await ask(port, "/reset_prefix_cache", {}, ADMIN_KEY)
        text = (await ask(port, "/metrics")).body
        left = {name: metric(text, name) for name in names}
        # The one that asks.
        left["connections"] = max(0, metric(text, "lserve:connections") - 1)
        if not any(left.values()):
            return text
        if time.monotonic() > deadline:
            raise Failure(f"after the load there is left: {left}")
        await asyncio.sleep(0.05)


def start(program, model, log):
    server = subprocess.Popen(
        [program, "serve", model, "--port", "0", "--threads", "2", "--max-model-len", "32k",
         "--kv-cache-bytes", "256M", "--no-access-log"],
        stderr=log, env={**os.environ, "LSERVE_ADMIN_KEY": ADMIN_KEY})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with open(log.name, encoding="utf-8") as text:
            found = re.search(r"listening at http://127\.0\.0\.1:(\d+)", text.read())
        if found:
            return server, int(found.group(1))
        time.sleep(0.02)
    server.kill()
    with open(log.name, encoding="utf-8") as text:
        raise Failure(f"the server did not start: {text.read()}")


async def measure(options, server, port):
    await wait_until_empty(port)
    before = resident_mib(server.pid)
    load = Load(port, options)
    began = time.monotonic()
    await load.run()
    took = time.monotonic() - began
    text = await wait_until_empty(port)
    latencies = sorted(load.latencies) or [0.0]
    cancelled = metric(text, "lserve:requests_cancelled_total")
    print(f"{options.clients} clients, {took:.1f} s: {load.answered} answers, {load.left} left, "
          f"{load.refused} told to wait (429), {cancelled:.0f} cancelled in the engine")
    print(f"latency s: median {latencies[len(latencies) // 2]:.2f}, "
          f"p99 {latencies[len(latencies) * 99 // 100]:.2f}, most {latencies[-1]:.2f}; "
          f"server memory MiB: {before:.0f} before, {resident_mib(server.pid):.0f} after")
    if load.wrong:
        raise Failure("\n".join(load.wrong))
    if load.answered == 0 or load.left == 0:
        raise Failure("nothing was answered, or nobody left: the load shows nothing")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("program")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--longest", type=int, default=4000, help="words of a document")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        server = None
        try:
            server, port = start(options.program, options.model, log)
            asyncio.run(measure(options, server, port))
            server.send_signal(signal.SIGTERM)
            if (status := server.wait(timeout=60)) != 0:
                raise Failure(f"the server ended with {status}, expected 0")
        except Failure as failure:
            with open(log.name, encoding="utf-8") as text:
                print(f"FAILED: {failure}\n--- the server's log\n{text.read()[-4000:]}")
            return 1
        finally:
            if server is not None and server.poll() is None:
                server.kill()
                server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
