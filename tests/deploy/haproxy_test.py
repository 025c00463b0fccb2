#!/usr/bin/env python3
"""deploy/haproxy.cfg before two real replicas: haproxy_test.py PROGRAM MODEL_DIR HAPROXY_CFG.

Conversations stay at the replica that has their prefix, streams and departures pass through, and a
replica that drains, dies or comes back does not stop the others. The file runs as it is, but for
its addresses and its certificate. Exit status 77, with the reason, where haproxy or openssl is
missing.
"""
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time

SKIPPED = 77
# Generous for a busy machine; everything is polled and usually takes a fraction.
PATIENCE_SECONDS = 30
# As long as the context allows: does not end by itself while the test looks.
ENDLESS = {"ignore_eos": True, "max_tokens": 20000}


class Failure(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failure(message)


def wait_until(done, what):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (result := done()):
        check(time.monotonic() < deadline, f"waited {PATIENCE_SECONDS} s until {what}")
        time.sleep(0.02)
    return result


class Replica:
    def __init__(self, command, log_path):
        self.command, self.log_path, self.port, self.process = command, log_path, 0, None

    def start(self):
        """Also again, then on the port that it had."""
        with open(self.log_path, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.command + ["--port", str(self.port)], stderr=log)
        self.port = int(wait_until(self.address, "a replica listens").group(1))

    def address(self):
        check(self.process.poll() is None, f"a replica ended at its start: {self.log()}")
        return re.search(r"listening at http://127\.0\.0\.1:(\d+)\n", self.log())

    def log(self):
        with open(self.log_path, encoding="utf-8") as log:
            return log.read()

    def metric(self, name):
        """Asked behind the proxy's back; the sum over all labels."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        values = re.findall(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
        check(values, f"/metrics has no {name}")
        return sum(float(value) for value in values)

    def running(self):
        return self.metric("vllm:num_requests_running")


class Proxy:
    def __init__(self, config, replicas, folder):
        certificate = os.path.join(folder, "lserve.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                        "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj",
                        "/CN=localhost", "-keyout", certificate, "-out", certificate + ".crt"],
                       check=True, capture_output=True)
        with open(certificate, "a", encoding="ascii") as both, \
                open(certificate + ".crt", encoding="ascii") as crt:
            both.write(crt.read())
        # Bound here and handed over: no port can be taken in between.
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        with open(config, encoding="utf-8") as file:
            text = file.read()
        for theirs, ours in [("bind :443 ", f"bind fd@{listener.fileno()} "),
                             ("/etc/haproxy/lserve.pem", certificate),
                             ("10.0.0.11:8000", f"127.0.0.1:{replicas['one'].port}"),
                             ("10.0.0.12:8000", f"127.0.0.1:{replicas['two'].port}")]:
            check(text.count(theirs) == 1, f"{config}: expected {theirs!r} once")
            text = text.replace(theirs, ours)
        path = os.path.join(folder, "haproxy.cfg")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        checked = subprocess.run(["haproxy", "-c", "-f", path], capture_output=True, text=True,
                                 pass_fds=[listener.fileno()], check=False)
        check(checked.returncode == 0 and "WARNING" not in checked.stderr,
              f"haproxy -c says: {checked.stderr}")
        self.process = subprocess.Popen(["haproxy", "-db", "-f", path],
                                        pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL)
        listener.close()
        self.tls = ssl.create_default_context(cafile=certificate + ".crt")
        self.tls.check_hostname = False

    def send(self, path, body, headers=None):
        """A connection on which the request was sent; nothing has been read."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.tls,
                                                 timeout=PATIENCE_SECONDS)
        connection.request("GET" if body is None else "POST", path,
                           None if body is None else json.dumps(body),
                           {"Content-Type": "application/json", **(headers or {})})
        return connection

    def ask(self, path, body=None, headers=None):
        """Status, replica that answered, headers, JSON."""
        connection = self.send(path, body, headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return (response.status, response.headers.get("x-replica"), response.headers,
                json.loads(text) if text.startswith("{") else text)


def first_turn(name, role="user"):
    words = " ".join(f"{name}{i % 89}" for i in range(250))
    return [{"role": role,
             "content": f"{words}. The access code for cedar is 48213.\n\n"
                        "What is the access code for cedar?"}]


def body_of(messages, **more):
    return {"model": "needle", "messages": messages, "max_tokens": 24, "temperature": 0, **more}


def cached(reply):
    return reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def second_turn(messages, reply):
    return messages + [reply["choices"][0]["message"],
                       {"role": "user", "content": "What is the access code for cedar?"}]


class Test:
    def __init__(self, proxy, replicas):
        self.proxy, self.replicas = proxy, replicas

    def chat(self, messages, headers=None, **more):
        status, replica, _, reply = self.proxy.ask("/v1/chat/completions",
                                                   body_of(messages, **more), headers)
        check(status == 200, f"status {status} of a chat: {reply}")
        return replica, reply

    def conversations_stay(self):
        """Two turns of several; returns one conversation of each replica."""
        held = {}
        for name in ["oak", "elm", "ash", "fir", "yew", "bay", "gum", "nut"]:
            messages = first_turn(name)
            replica, reply = self.chat(messages)
            check("48213" in reply["choices"][0]["message"]["content"], f"a wrong answer: {reply}")
            check(cached(reply) < 64, f"{name} is new, but cached: {reply['usage']}")
            prompt = reply["usage"]["prompt_tokens"]
            messages = second_turn(messages, reply)
            again, reply = self.chat(messages)
            check(again == replica, f"{name} went from {replica} to {again}")
            # Whole pages of 64 tokens, and the template may write an old answer differently.
            check(cached(reply) >= prompt - 128, f"of {prompt} known tokens: {reply['usage']}")
            held[replica] = messages
        check(set(held) == {"one", "two"}, f"all of 8 conversations went to {set(held)}")
        return held

    def kinds_of_requests(self, held):
        for replica, messages in held.items():
            text = messages[0]["content"]
            parts = [{"type": "text", "text": text}]
            asks = {"/v1/messages": {"messages": [{"role": "user", "content": parts}]},
                    "/v1/responses": {"input": text, "max_output_tokens": 4},
                    "/v1/completions": {"prompt": text},
                    "/tokenize": {"messages": [{"role": "system", "content": "Be brief."}]
                                  + messages}}
            for path, body in asks.items():
                if path not in ("/v1/responses", "/tokenize"):
                    body["max_tokens"] = 4
                status, got, _, reply = self.proxy.ask(path, body)
                check(status == 200, f"status {status} of {path}: {reply}")
                check(got == replica, f"{path} with the text that is at {replica} went to {got}")
        # More system message than the proxy looks at.
        system = [{"role": "system", "content": "Rules are rules. " * 950}]
        at, reply = self.chat(system + first_turn("a"), max_tokens=1)
        again, reply = self.chat(system + second_turn(first_turn("b"), reply), max_tokens=1)
        check(again == at and cached(reply) > 1000, f"{at}, then {again}: {reply['usage']}")
        at = {self.chat(first_turn(f"s{i}"), {"x-session-id": "s"}, max_tokens=1)[0]
              for i in range(6)}
        check(len(at) == 1, f"one session went to {at}")
        for path in ["/metrics", "/reset_prefix_cache"]:
            check(self.proxy.ask(path)[0] == 403, f"{path} is open to the world")

    def streams_pass(self, held):
        for replica, messages in held.items():
            server = self.replicas[replica]
            before = server.metric("lserve:requests_cancelled_total")
            connection = self.proxy.send("/v1/chat/completions",
                                         body_of(messages, stream=True) | ENDLESS)
            response = connection.getresponse()
            tokens = 0
            while tokens < 3:
                tokens += b'"delta"' in response.readline()
            check(server.running() == 1, "events came when the stream had ended, not while it ran")
            response.close()
            connection.close()
            wait_until(lambda: server.running() == 0, "a stream stops whose client left")
            # A client of a whole answer, of which no byte has come.
            connection = self.proxy.send("/v1/chat/completions", body_of(messages) | ENDLESS)
            wait_until(lambda: server.running() == 1, "a request runs")
            connection.close()
            wait_until(lambda: server.running() == 0, "an answer stops whose client left")
            left = server.metric("lserve:requests_cancelled_total") - before
            check(left == 2, f"{left} of 2 requests were cancelled")

    def a_drained_replica_is_taken_out(self, held):
        messages, server = held["one"], self.replicas["one"]
        streams = {}
        for name, more in [("short", {"max_tokens": 300, "ignore_eos": True}), ("long", ENDLESS)]:
            connection = self.proxy.send("/v1/chat/completions",
                                         body_of(messages, stream=True) | more)
            streams[name] = (connection, connection.getresponse())
            check(streams[name][1].headers["x-replica"] == "one", "not at its replica")
        server.process.send_signal(signal.SIGTERM)
        refused = 0

        def is_at_the_other():
            nonlocal refused
            status, replica, headers, reply = self.proxy.ask("/v1/chat/completions",
                                                             body_of(messages, max_tokens=1))
            if status == 503:
                check(int(headers.get("retry-after", 0)) > 0, "503 without Retry-After")
                refused += 1
                return False
            check(status == 200, f"status {status} while a replica drains: {reply}")
            return replica == "two"
        wait_until(is_at_the_other, "a conversation has left the replica that drains")
        check(server.process.poll() is None, "the replica ended while it still had a stream")
        text = streams["short"][1].read().decode()
        check(text.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in text,
              f"the stream did not end well at the replica that drains: {text[-300:]}")
        streams["long"][1].close()
        streams["long"][0].close()
        status = server.process.wait(timeout=PATIENCE_SECONDS)
        check(status == 0, f"the drained replica ended with {status}: {server.log()}")
        print(f"drained: {refused} requests were told to come back")

    def a_replica_comes_back(self, held):
        self.replicas["one"].start()
        wait_until(lambda: self.chat(held["one"], max_tokens=1)[0] == "one",
                   "a conversation is back at its replica")

    def a_killed_replica_is_not_missed(self, held):
        self.replicas["two"].process.kill()
        self.replicas["two"].process.wait()
        # At once: nobody has told the proxy.
        for _ in range(3):
            replica, _ = self.chat(held["two"], max_tokens=1)
            check(replica == "one", f"an answer of {replica}, which is dead")
        # Nor is the conversation that was there before concerned.
        replica, reply = self.chat(held["one"], max_tokens=1)
        check(replica == "one" and cached(reply) > 0, f"at {replica}: {reply['usage']}")

    def run(self):
        began = time.monotonic()
        held = self.conversations_stay()
        for step in [self.kinds_of_requests, self.streams_pass, self.a_drained_replica_is_taken_out,
                     self.a_replica_comes_back, self.a_killed_replica_is_not_missed]:
            step(held)
            print(f"{step.__name__}: ok, {time.monotonic() - began:.1f} s since the start")


def main():
    for tool in ["haproxy", "openssl"]:
        if shutil.which(tool) is None:
            print(f"SKIPPED: no {tool} (Debian: apt-get install {tool})")
            return SKIPPED
    program, model, config = sys.argv[1:]
    command = [program, "serve", model, "--threads", "1", "--max-model-len", "32k",
               "--kv-cache-bytes", "128M", "--no-access-log"]
    replicas, proxy = {}, None
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in ["one", "two"]:
                replicas[name] = Replica(command, os.path.join(folder, f"{name}.log"))
                replicas[name].start()
            proxy = Proxy(config, replicas, folder)
            Test(proxy, replicas).run()
        except Failure as failure:
            print(f"FAILED: {failure}")
            return 1
        finally:
            for process in [r.process for r in replicas.values()] + [proxy and proxy.process]:
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
