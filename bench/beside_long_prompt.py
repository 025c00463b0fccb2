#!/usr/bin/env python3
"""What others feel while a long prompt is read: beside_long_prompt.py PROGRAM MODEL_DIR [TOKENS].

A stream is being written and short chats come one after another while a prompt of TOKENS (default:
32768) is read, with the server's defaults. One JSON line, of that time only, as clients see it:
first tokens of the chats, gaps between tokens of the stream. Exit status 0: the 99th percentile of
the gaps is within --max-decode-gap-ms, and every first token within two of them: the step that has
begun, and the chat's own.
"""
import http.client
import json
import re
import subprocess
import sys
import threading
import time

GAP_MS = 200  # --max-decode-gap-ms
WORDS_PER_TOKEN = 1 / 3


def post(port, content, **more):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = {"messages": [{"role": "user", "content": content}], "stream": True, "temperature": 0,
            "ignore_eos": True, **more}
    connection.request("POST", "/v1/chat/completions", json.dumps(body),
                       {"Content-Type": "application/json"})
    return connection.getresponse()


def token_times(response, until=None):
    """When each token came, until the stream ends or `until` is set."""
    times = []
    while (line := response.readline()) and not (until and until.is_set()):
        if line.startswith(b"data: ") and b'"content"' in line and b'"role"' not in line:
            times.append(time.monotonic())
    return times


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(port, tokens):
    over = threading.Event()
    stream_times, span = [], []

    def write():
        stream_times.extend(token_times(post(port, "hi", max_tokens=30000), over))

    def read_long():
        words = " ".join(f"word{i % 97}" for i in range(int(tokens * WORDS_PER_TOKEN)))
        span.append(time.monotonic())
        response = post(port, words, max_tokens=1, stream_options={"include_usage": True})
        text = response.read().decode()
        span.append(time.monotonic())
        span.append(int(re.search(r'"prompt_tokens":(\d+)', text).group(1)))
        over.set()

    writer, reader = threading.Thread(target=write), threading.Thread(target=read_long)
    writer.start()
    time.sleep(0.5)
    reader.start()
    time.sleep(0.5)
    first_tokens = []
    while not over.is_set():
        began = time.monotonic()
        first = token_times(post(port, "The access code for cedar is 48213.\n\n"
                                       "What is the access code for cedar?", max_tokens=8))[0]
        if not over.is_set():
            first_tokens.append(1e3 * (first - began))
    reader.join()
    writer.join()
    times = [t for t in stream_times if span[0] <= t <= span[1]]
    gaps = [1e3 * (b - a) for a, b in zip(times, times[1:])]
    figures = {"prompt_tokens": span[2], "prompt_s": round(span[1] - span[0], 2),
               "chats": len(first_tokens),
               "chat_first_token_ms": {"median": round(percentile(first_tokens, 0.5)),
                                       "most": round(max(first_tokens))},
               "gaps": len(gaps),
               "gap_ms": {"median": round(percentile(gaps, 0.5)),
                          "p99": round(percentile(gaps, 0.99)), "most": round(max(gaps))},
               "max_decode_gap_ms": GAP_MS}
    print(json.dumps(figures))
    return percentile(gaps, 0.99) <= GAP_MS and max(first_tokens) <= 2 * GAP_MS


def main():
    tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 32768
    server = subprocess.Popen(
        [sys.argv[1], "serve", sys.argv[2], "--port", "0", "--max-model-len", str(2 * tokens),
         "--kv-cache-bytes", "512M", "--max-decode-gap-ms", str(GAP_MS), "--no-access-log"],
        stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if found := re.search(r"listening at http://127\.0\.0\.1:(\d+)", line):
                break
        return 0 if measure(int(found.group(1)), tokens) else 1
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
