#!/usr/bin/env python3
"""What the server adds to short prompts: serve_throughput.py PROGRAM MODEL_DIR, one JSON line.

The same questions, 64 tokens each, 8 at a time, by `lserve run` and through the server by 8 clients
that each wait for their answer; by turns, and the ratio is taken turn by turn. Both programs have
started before the clock counts (`lserve run`: the difference of two runs, of all questions and of
8). The clients share the cores with the server. Standard library only; the machine should have
nothing else to do.
"""
import asyncio
import json
import re
import statistics
import subprocess
import sys
import time

QUESTIONS, AT_ONCE, TOKENS, ROUNDS = 400, 8, 64, 9


def question(i):
    return f"What is the access code for storeroom number {i}?"


def body(i):
    return {"messages": [{"role": "user", "content": question(i)}], "max_tokens": TOKENS, "temperature": 0,
            "ignore_eos": True}


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

    async def ask(self, content):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = json.dumps(content).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                     b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        reply = await reader.read()
        writer.close()
        if b" 200 " not in reply.split(b"\r\n", 1)[0]:
            sys.exit(f"the server answered {reply[:300]!r}")


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
            await server.ask(body(waiting.pop()))

    begin = time.monotonic()
    await asyncio.gather(*[client() for _ in range(AT_ONCE)])
    return time.monotonic() - begin


def main():
    program, model = sys.argv[1:3]
    rates = {"run": [], "serve": []}
    server = Server(program, model, "--max-num-seqs", str(AT_ONCE))
    asyncio.run(serve_seconds(server))  # warms up
    for _ in range(ROUNDS):
        seconds = run_seconds(program, model, QUESTIONS) - run_seconds(program, model, AT_ONCE)
        rates["run"].append((QUESTIONS - AT_ONCE) * TOKENS / seconds)
        rates["serve"].append(QUESTIONS * TOKENS / asyncio.run(serve_seconds(server)))
    server.end()
    ratios = [serve / run for run, serve in zip(rates["run"], rates["serve"])]
    print(json.dumps({"questions": QUESTIONS, "at_once": AT_ONCE, "tokens": TOKENS, "tokens_per_second": rates,
                      "serve_of_run": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}}))


if __name__ == "__main__":
    main()
