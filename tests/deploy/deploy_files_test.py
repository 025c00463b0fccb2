#!/usr/bin/env python3
"""What deploy/ says, against the program: deploy_files_test.py PROGRAM SOURCE_DIR.

Command lines are parsed by the program itself, ports and times agree across the files, probes ask
what they should, nothing runs as root, and what the Dockerfile copies and installs is what the
program needs. No cluster and no daemon is needed. Exit status 77: all that could be checked was
right, and something, which is named, could not be checked here.
"""
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
# After the deadline of the drain, aborted streams are told why, and the process ends.
SECONDS_TO_END = 5
# Options of other programs that deploy/ names.
FOREIGN = {"--no-install-recommends", "--from"}
# Libraries that a debian:bookworm-slim has already.
BASE_PACKAGES = {"libc6", "libgcc-s1", "libstdc++6", "zlib1g"}

problems = []
unchecked = []


def expect(condition, message):
    if not condition:
        problems.append(message)


class Files:
    def __init__(self, program, source):
        self.program, self.source = os.path.realpath(program), os.path.realpath(source)

    def text(self, name):
        with open(os.path.join(self.source, name), encoding="utf-8") as file:
            return file.read()

    def deployed(self):
        folder = os.path.join(self.source, "deploy")
        return sorted(os.path.relpath(os.path.join(at, name), self.source)
                      for at, _, names in os.walk(folder) for name in names)

    def effective(self, where, arguments):
        """The options of a command line, by the program's own --print-config."""
        with tempfile.TemporaryDirectory() as folder:
            # Files that only a deployed machine has.
            stand_ins = {"--api-key-file": "sk-x\n", "--config": "{}"}
            arguments = list(arguments)
            for i, name in enumerate(arguments[:-1]):
                if name in stand_ins:
                    arguments[i + 1] = os.path.join(folder, str(i))
                    with open(arguments[i + 1], "w", encoding="ascii") as file:
                        file.write(stand_ins[name])
            done = subprocess.run([self.program, *arguments, "--print-config"],
                                  capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"FAILED: {where}: {shlex.join(arguments)}: {done.stderr.strip()}")
        return json.loads(done.stdout)


def check_names(files):
    """Every option that is named anywhere, in comments too; every file in the README."""
    done = subprocess.run([files.program, "serve", "--help"], capture_output=True, text=True,
                          check=True)
    known = set(re.findall(r"--[a-z][a-z0-9-]+", done.stdout)) | FOREIGN
    expect(len(known) > 50, f"serve --help lists {len(known)} options")
    readme = files.text("deploy/README.md")
    for name in files.deployed():
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", files.text(name)):
            expect(option in known, f"{name}: {option} is no option of lserve serve")
        link = os.path.relpath(name, "deploy")
        expect(link == "README.md" or link.endswith(".dockerignore") or f"({link})" in readme,
               f"deploy/README.md does not name {link}")


class Dockerfile:
    def __init__(self, files):
        self.files = files
        text = re.sub(r"\\\n", " ", files.text("deploy/Dockerfile"))
        self.steps = [line.split(None, 1) for line in text.splitlines()
                      if line.strip() and not line.startswith("#")]
        self.entrypoint = json.loads(self.only("ENTRYPOINT"))
        self.options = files.effective("deploy/Dockerfile", self.entrypoint[1:])
        self.user = self.only("USER")

    def only(self, instruction):
        found = [rest for name, rest in self.steps if name == instruction]
        expect(len(found) == 1, f"deploy/Dockerfile: {len(found)} of {instruction}, expected one")
        return found[0] if found else ""

    def check(self):
        expect(self.entrypoint[0] == "lserve", "the entry point is not lserve")
        expect(re.fullmatch(r"[1-9]\d*:[1-9]\d*", self.user),
               f"deploy/Dockerfile: USER {self.user}: Kubernetes takes only numbers for non-root")
        expect(self.only("EXPOSE") == str(self.options.get("port")), "EXPOSE is not --port")
        expect(self.options.get("host") == "0.0.0.0", "a container's loopback is nobody's")
        expect(self.only("STOPSIGNAL") == "SIGTERM", "SIGTERM is what drains")
        self.check_copies()
        self.check_packages()

    def check_copies(self):
        ignored = self.files.text("deploy/Dockerfile.dockerignore").split()
        source = self.files.source
        tracked = subprocess.run(["git", "-C", source, "ls-files"], capture_output=True, text=True,
                                 check=False).stdout.split("\n")
        if not any(tracked):
            unchecked.append("whether .dockerignore hides a source: this is no git checkout")
        for root in {path.split("/")[0] for path in tracked if path}:
            expect(not any(fnmatch.fnmatch(root, pattern) for pattern in ignored),
                   f"deploy/Dockerfile.dockerignore hides {root}")
        presets = json.loads(self.files.text("CMakePresets.json"))["configurePresets"]
        built = next(p for p in presets if p["name"] == "cpu")["binaryDir"]
        for name, rest in self.steps:
            if name != "COPY":
                continue
            words = rest.split()
            if words[0].startswith("--from="):
                expect(words[1] == built.replace("${sourceDir}", "/src") + "/lserve",
                       f"deploy/Dockerfile: {words[1]} is not where ./dev build puts the program")
            else:
                for path in words[:-1]:
                    expect(os.path.exists(os.path.join(source, path)),
                           f"deploy/Dockerfile: COPY {path}: there is no such path")
        runs = " ".join(rest for name, rest in self.steps if name == "RUN")
        expect("./dev build cpu lserve" in runs and os.access(f"{source}/dev", os.X_OK),
               "deploy/Dockerfile: how is the program built?")

    def check_packages(self):
        """The packages of the libraries that the program is linked with."""
        linked = subprocess.run(["ldd", self.files.program], capture_output=True, text=True,
                                check=False).stdout
        if shutil.which("dpkg-query") is None or not linked or "libasan" in linked \
                or "libtsan" in linked or "libcuda" in linked:
            unchecked.append("packages of the Dockerfile: this is no Debian, or no plain build")
            return
        # Of the last stage, which is the image.
        installed = set([rest for name, rest in self.steps if name == "RUN"][-1].split())
        needed = set()
        for path in re.findall(r"=> (/\S+)", linked):
            # /lib is /usr/lib, and packages know only one of the two.
            found = subprocess.run(["dpkg-query", "-S", path, os.path.realpath(path)],
                                   capture_output=True, text=True, check=False)
            owners = {line.split(":")[0] for line in found.stdout.splitlines()}
            expect(owners, f"no package has {path}")
            needed |= owners
        for package in sorted(needed - BASE_PACKAGES):
            expect(package in installed, f"deploy/Dockerfile does not install {package}")
        for package in sorted(installed - needed):
            expect(not package.startswith("lib"),
                   f"deploy/Dockerfile installs {package}, which the program is not linked with")


def check_kubernetes(files, docker):
    try:
        import yaml  # pylint: disable=import-outside-toplevel
    except ImportError:
        unchecked.append("Kubernetes manifests: no yaml (Debian: apt-get install python3-yaml)")
        return
    where = "deploy/kubernetes/lserve.yaml"
    objects = {o["kind"]: o for o in yaml.safe_load_all(files.text(where))}
    expect(set(objects) == {"Deployment", "Service"}, f"{where} has {set(objects)}")
    template = objects["Deployment"]["spec"]["template"]
    pod, labels = template["spec"], template["metadata"]["labels"]
    expect(len(pod["containers"]) == 1, "one container")
    container = pod["containers"][0]
    options = files.effective(where, docker.entrypoint[1:] + container["args"])

    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    expect(ports == {"http": options["port"]}, f"ports {ports}, but --port {options['port']}")
    expect(template["metadata"]["annotations"]["prometheus.io/port"] == str(options["port"]),
           "Prometheus asks at another port")
    service = objects["Service"]["spec"]
    expect([p["targetPort"] for p in service["ports"]] == ["http"], "the Service's target port")
    for selector in [service["selector"], objects["Deployment"]["spec"]["selector"]["matchLabels"]]:
        expect(selector.items() <= labels.items(), f"{selector} selects no pod with {labels}")

    for probe, path in [("startupProbe", "/health"), ("livenessProbe", "/health"),
                        ("readinessProbe", "/ready")]:
        asked = container[probe]["httpGet"]
        expect(asked == {"path": path, "port": "http"}, f"{probe} asks {asked}, expected {path}")
    # The engine's own watchdog ends a hung process; a probe must not do so while it is only busy.
    expect("/ready" not in str(container["livenessProbe"]), "a drain would be a death")

    wait = container["lifecycle"]["preStop"]["exec"]["command"]
    expect(wait[0] == "sleep", f"preStop is {wait}")
    needed = int(wait[1]) + options["shutdown-timeout"] + SECONDS_TO_END
    grace = pod["terminationGracePeriodSeconds"]
    expect(grace >= needed, f"{where}: {grace} s of grace, but draining takes up to {needed} s")

    security = pod["securityContext"]
    expect(security["runAsNonRoot"] is True, "the container may be root")
    ids = f"{security['runAsUser']}:{security['runAsGroup']}"
    expect(ids == docker.user, f"runs as {ids}, but the image is made for {docker.user}")
    inner = container["securityContext"]
    expect(inner["allowPrivilegeEscalation"] is False and inner["readOnlyRootFilesystem"] is True
           and inner["capabilities"] == {"drop": ["ALL"]}, f"the container may do {inner}")
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    expect(set(mounts.values()) == {v["name"] for v in pod["volumes"]}, "mounts are not volumes")
    expect(docker.entrypoint[2] in mounts, f"no volume at {docker.entrypoint[2]}, the model")
    keys = container["args"][container["args"].index("--api-key-file") + 1]
    expect(os.path.dirname(keys) in mounts, f"no volume has {keys}")


def check_systemd(files):
    where = "deploy/lserve.service"
    text = files.text(where)
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    command = shlex.split(settings["ExecStart"])
    options = files.effective(where, command[1:])
    expect(settings.get("DynamicUser") == "yes", f"{where}: runs as root")
    stop = int(settings["TimeoutStopSec"])
    expect(stop >= options["shutdown-timeout"] + SECONDS_TO_END,
           f"{where}: {stop} s to stop, but the drain may take {options['shutdown-timeout']} s")
    expect(int(settings["LimitNOFILE"]) > options["max-connections"], f"{where}: too few files")
    if shutil.which("systemd-analyze") is None:
        unchecked.append("the unit's syntax: no systemd-analyze (Debian: apt-get install systemd)")
        return
    with tempfile.TemporaryDirectory() as folder:
        unit = os.path.join(folder, "lserve.service")
        with open(unit, "w", encoding="utf-8") as file:
            file.write(text.replace(command[0], files.program))
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True,
                              check=False)
    said = [line for line in done.stderr.splitlines() if "lserve.service" in line]
    expect(not said, f"systemd-analyze verify: {said}")
    if done.returncode != 0 and not said:
        unchecked.append(f"the unit's syntax: {done.stderr.strip()}")


def main():
    files = Files(*sys.argv[1:])
    check_names(files)
    docker = Dockerfile(files)
    docker.check()
    check_kubernetes(files, docker)
    check_systemd(files)
    for problem in problems:
        print(f"FAILED: {problem}")
    for what in unchecked:
        print(f"NOT CHECKED: {what}")
    return 1 if problems else SKIPPED if unchecked else 0


if __name__ == "__main__":
    sys.exit(main())
