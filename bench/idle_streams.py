#!/usr/bin/env python3
"""What idle streams cost: idle_streams.py PROGRAM MODEL_DIR [COUNT], one JSON line.

One request runs at a time; COUNT streams wait behind it, with their headers and a heartbeat each
second. `mib` is the growth of the server's resident memory, less the KV pages that the one which
runs takes meanwhile. Then the one that runs and half of
those that wait leave, and the others get their answers. Exit status 0: all of that happened, and a
stream cost less than 100 MB divided by 1,000.
"""
import json
import re
import resource
import socket
import subprocess
import sys
import time
import urllib.request

MOST_BYTES_PER_STREAM = 100e6 / 1000
PATIENCE_SECONDS = 60


def rss_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) * 1024


def connect(port, **more):
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True,
                       **more}).encode()
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
    client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
                   b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return client


def read_until(client, text):
    received = b""
    while text not in received and (more := client.recv(65536)):
        received += more
    return received


def gauges(port, *names):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    return [float(re.search(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE).group(1))
            for name in names]


def wait_for(port, running, waiting):
    expected = [running, waiting]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = gauges(port, "vllm:num_requests_running", "vllm:num_requests_waiting")
        if found == expected:
            return
        if time.monotonic() > deadline:
            sys.exit(f"idle_streams: {found} requests run and wait, expected {expected}")
        time.sleep(0.02)


def measure(server, port, count):
    running = connect(port, max_tokens=20000)
    wait_for(port, running=1, waiting=0)
    before = rss_bytes(server.pid) - gauges(port, "lserve:kv_bytes_in_use")[0]
    waiting = [connect(port, stream=True, max_tokens=8) for _ in range(count)]
    heads = [read_until(client, b"\n: ") for client in waiting]  # up to a heartbeat
    wait_for(port, running=1, waiting=count)
    grown = rss_bytes(server.pid) - gauges(port, "lserve:kv_bytes_in_use")[0] - before
    open_streams = sum(head.startswith(b"HTTP/1.1 200") and b"data: " not in head for head in heads)

    for client in waiting[::2] + [running]:
        client.close()
    answered = sum(b"data: [DONE]" in read_until(client, b"data: [DONE]")
                   for client in waiting[1::2])
    wait_for(port, running=0, waiting=0)
    print(json.dumps({"streams": open_streams, "mib": round(grown / 2**20, 1), "answered": answered,
                      "left": len(waiting[::2])}))
    return (open_streams == count and answered == count // 2
            and grown <= count * MOST_BYTES_PER_STREAM)


def main():
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server = subprocess.Popen(
        [sys.argv[1], "serve", sys.argv[2], "--port", "0", "--max-num-seqs", "1",
         "--max-num-queued-reqs", str(2 * count), "--max-connections", str(2 * count),
         "--kv-cache-bytes", "128M", "--max-model-len", "32k", "--no-access-log"],
        stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if found := re.search(r"listening at http://127\.0\.0\.1:(\d+)", line):
                break
        return 0 if measure(server, int(found.group(1)), count) else 1
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
