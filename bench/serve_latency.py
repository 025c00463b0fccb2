#!/usr/bin/env python3
"""What the server adds, and what a long prompt does to short ones: serve_latency.py PROGRAM MODEL_DIR.

1. Throughput on short prompts: the same questions, 64 tokens each, 8 at a time, by `lserve run` and
   through the server by 8 clients that each wait for their answer. Both programs have started
   before the clock does (`lserve run`: the difference of two runs, of all questions and of 8).
2. Latency beside a prompt of 32K tokens: a stream writes, and short chats come one after another,
   alone and while the prompt is read: time to the first token, gaps between tokens.

Two JSON lines on stdout. Standard library only; the machine should have nothing else to do.
"""
import asyncio
import json
import re
import statistics
import subprocess
import sys
import time

QUESTIONS, AT_ONCE, TOKENS = 200, 8, 64
LONG_WORDS = 22000  # some 32K tokens
SENTENCES = ["The ferry left the harbor before noon.", "Nobody had counted the barrels in the cellar.",
             "A letter from the north arrived two days late."]


def question(i):
    return f"What is the access code for storeroom number {i}?"


def body(text, tokens, stream):
    return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "stream": stream}


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Server:
    def __init__(self, program, model, *options):
        self.process = subprocess.Popen([program, "serve", model, "--port", "0", "--no-access-log", *options],
                                        stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"listening at http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found.group(1))
                return
        sys.exit("the server did not start")

    def end(self):
        self.process.terminate()
        self.process.wait()

    async def send(self, content):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = json.dumps(content).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                     b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        return reader, writer

    async def ask(self, content):
        reader, writer = await self.send(content)
        reply = await reader.read()
        writer.close()
        if b" 200 " not in reply.split(b"\r\n", 1)[0]:
            sys.exit(f"the server answered {reply[:300]!r}")

    # The moments at which tokens arrived.
    async def stream(self, content):
        reader, writer = await self.send(content)
        times = []
        while line := await reader.readline():
            if line.startswith(b"data: {") and (b'"content"' in line or b'"reasoning' in line):
                times.append(time.monotonic())
        writer.close()
        return times


def run_seconds(program, model, count):
    command = [program, "run", model, "--max-tokens", str(TOKENS), "--ignore-eos", "--temperature", "0",
               "--max-num-seqs", str(AT_ONCE), "--json"]
    for i in range(count):
        command += ["--question", question(i)]
    begin = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - begin


async def serve_seconds(server):
    waiting = list(range(QUESTIONS))

    async def client():
        while waiting:
            await server.ask(body(question(waiting.pop()), TOKENS, False))

    begin = time.monotonic()
    await asyncio.gather(*[client() for _ in range(AT_ONCE)])
    return time.monotonic() - begin


def throughput(program, model):
    rates = {"run": [], "serve": []}
    server = Server(program, model, "--max-num-seqs", str(AT_ONCE))
    asyncio.run(serve_seconds(server))  # warms up
    for _ in range(3):
        seconds = run_seconds(program, model, QUESTIONS) - run_seconds(program, model, AT_ONCE)
        rates["run"].append((QUESTIONS - AT_ONCE) * TOKENS / seconds)
        rates["serve"].append(QUESTIONS * TOKENS / asyncio.run(serve_seconds(server)))
    server.end()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(json.dumps({"what": "throughput", "questions": QUESTIONS, "at_once": AT_ONCE, "tokens": TOKENS,
                      "tokens_per_second": rates, "serve_of_run": medians["serve"] / medians["run"]}), flush=True)


async def mixed(server, long_text):
    result = {}
    for name in ("alone", "beside"):
        times = []

        async def writing():
            reader, writer = await server.send(body("Tell me about the harbor.", 20000, True))
            try:
                while line := await reader.readline():
                    if line.startswith(b"data: {") and b'"content"' in line:
                        times.append(time.monotonic())
            finally:
                writer.close()

        writer = asyncio.create_task(writing())
        await asyncio.sleep(1)
        begin = time.monotonic()
        long = asyncio.create_task(server.stream(body(long_text, 1, True)) if name == "beside" else asyncio.sleep(6))
        first_tokens, index = [], 0
        while not long.done():
            sent = time.monotonic()
            first = await server.stream(body(question(index), 2, True))
            first_tokens.append(first[0] - sent)
            index += 1
            await asyncio.sleep(0.1)
        end = time.monotonic()
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        inside = [t for t in times if begin <= t <= end]
        gaps = [b - a for a, b in zip(inside, inside[1:])]
        result[name] = {"seconds": end - begin, "short_chats": len(first_tokens), "stream_tokens": len(inside),
                        "first_token_ms": {"median": 1e3 * statistics.median(first_tokens),
                                           "p99": 1e3 * percentile(first_tokens, 0.99)},
                        "gap_ms": {"median": 1e3 * statistics.median(gaps), "p99": 1e3 * percentile(gaps, 0.99),
                                   "most": 1e3 * max(gaps)}}
        await asyncio.sleep(1)
    return result


def main():
    program, model = sys.argv[1:3]
    throughput(program, model)
    server = Server(program, model, "--max-num-seqs", str(AT_ONCE))
    words = " ".join(SENTENCES[i % 3] for i in range(LONG_WORDS // 7))
    print(json.dumps({"what": "latency", **asyncio.run(mixed(server, words + " What left the harbor?"))}), flush=True)
    server.end()


if __name__ == "__main__":
    main()
