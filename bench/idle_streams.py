#!/usr/bin/env python3
"""What idle streams cost: idle_streams.py PROGRAM MODEL_DIR [COUNT], one JSON line.

One request runs at a time; COUNT streams wait behind it, with their headers and a heartbeat each
second. `mib` is the growth of the server's resident memory.
"""
import json
import re
import resource
import socket
import subprocess
import sys
import time


def rss_mib(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024


def connect(port, max_tokens):
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True,
                       "ignore_eos": True, "max_tokens": max_tokens}).encode()
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
                   b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return client


def main():
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server = subprocess.Popen(
        [sys.argv[1], "serve", sys.argv[2], "--port", "0", "--max-num-seqs", "1",
         "--max-num-queued-reqs", str(2 * count), "--max-connections", str(2 * count),
         "--kv-cache-bytes", "64M", "--max-model-len", "32k", "--no-access-log"],
        stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if found := re.search(r"listening at http://127\.0\.0\.1:(\d+)", line):
                break
        port = int(found.group(1))
        clients = [connect(port, 20000)]
        time.sleep(2)
        before = rss_mib(server.pid)
        clients += [connect(port, 8) for _ in range(count)]
        time.sleep(4)
        for client in clients:
            client.settimeout(5)
        open_streams = sum(client.recv(4096).startswith(b"HTTP/1.1 200") for client in clients[1:])
        print(json.dumps({"streams": open_streams, "mib": round(rss_mib(server.pid) - before, 1)}))
        return 0 if open_streams == count else 1
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
