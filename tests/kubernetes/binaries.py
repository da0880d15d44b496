"""Kubernetes for the tests, built from Debian's source package: `python -m tests.kubernetes.binaries`.

No package of Debian 12 has an API server, but its source package `kubernetes` (1.20.2) has all of it, with
vendored dependencies. Source and Go compiler are downloaded by apt and unpacked below a temporary folder, so
nothing is installed. `.cache/` keeps the programs; building them takes five minutes on two idle cores.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.examples.environments import CACHE, Unavailable, locked

VERSION = "1.20.2"
FOLDER = CACHE / f"kubernetes-{VERSION}"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl")
GO_PACKAGES = ("golang-1.19-go", "golang-1.19-src")
MIRROR = Path("/etc/apt/sources.list.d/debian.sources")
# Cloud providers and Docker are left out: half of the code.
TAGS = "providerless dockerless"
OPENAPI_TAG = re.compile(r"^// *\+k8s:openapi-gen=", re.MULTILINE)
ROOT = "k8s.io/kubernetes"


def programs() -> Path:
    """The folder with the programs.

    Raises:
        Unavailable: they are not built.
    """
    if not all((FOLDER / name).is_file() for name in PROGRAMS):
        raise Unavailable(f"Kubernetes {VERSION} is not built; `make kubernetes` builds it")
    return FOLDER


def build() -> Path:
    """Build the programs if they are not in the cache.

    Raises:
        Unavailable: this machine cannot; with the end of the output of the command that failed.
    """
    with locked(CACHE / "kubernetes.lock"):
        if not FOLDER.is_dir():
            with tempfile.TemporaryDirectory(prefix="gusset-kubernetes-build-") as work:
                _Build(Path(work)).run()
    return programs()


class _Build:
    def __init__(self, work: Path) -> None:
        self._work = work
        self._source = work / "go" / "src" / ROOT
        go = work / "compiler" / "usr" / "lib" / "go-1.19" / "bin"
        self._environ = {
            "PATH": f"{go}:/usr/bin:/bin",
            "HOME": str(work),
            "GOPATH": str(work / "go"),
            "GOCACHE": str(work / "cache"),
            "GO111MODULE": "off",
            "GOPROXY": "off",
            "GOFLAGS": "-p=2",
            "CGO_ENABLED": "0",
        }

    def run(self) -> None:
        if not MIRROR.is_file() or shutil.which("dpkg-source") is None:
            raise Unavailable(f"building Kubernetes needs Debian 12 with {MIRROR} and dpkg-dev")
        self._download()
        self._generate_openapi()
        new = FOLDER.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        stamped = {"gitVersion": f"v{VERSION}", "gitMajor": "1", "gitMinor": "20", "gitTreeState": "archive"}
        variables = [
            f"-X {ROOT}/vendor/k8s.io/{package}.{name}={value}"
            for package in ("client-go/pkg/version", "component-base/version")
            for name, value in stamped.items()
        ]
        options = ["-trimpath", "-tags", TAGS, "-ldflags", " ".join(["-s -w", *variables]), "-o", f"{new}/"]
        self._go("build", *options, *(f"./cmd/{name}" for name in PROGRAMS))
        new.rename(FOLDER)

    def _download(self) -> None:
        """Unpack the source and the compiler. apt's own lists stay as they are."""
        sources = self._work / "debian.sources"
        sources.write_text(MIRROR.read_text().replace("Types: deb\n", "Types: deb-src\n"))
        lists = self._work / "lists"
        (lists / "partial").mkdir(parents=True)
        options = ["-q", "-o", "APT::Sandbox::User=root"]
        own = ["-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-"]
        own += ["-o", f"Dir::State::lists={lists}"]
        self._run("apt-get", *options, *own, "update")
        self._run("apt-get", *options, *own, "source", "--download-only", "kubernetes")
        [description] = self._work.glob("kubernetes_*.dsc")
        if VERSION not in description.name:
            raise Unavailable(f"apt has {description.name}; the tests are for Kubernetes {VERSION}")
        self._source.parent.mkdir(parents=True)
        self._run("dpkg-source", "--extract", str(description), str(self._source))
        self._run("apt-get", *options, "download", *GO_PACKAGES)
        for archive in self._work.glob("*.deb"):
            self._run("dpkg-deb", "--extract", str(archive), str(self._work / "compiler"))

    def _generate_openapi(self) -> None:
        """Write the one generated file that the source package does not have."""
        generator = self._work / "openapi-gen"
        self._go("build", "-o", str(generator), "./vendor/k8s.io/kube-openapi/cmd/openapi-gen")
        tagged = {
            file.parent
            for top in ("pkg", "staging/src")
            for file in (self._source / top).rglob("*.go")
            if OPENAPI_TAG.search(file.read_text("utf-8", "replace"))
        }
        packages = (
            str(folder.relative_to(self._source)).replace("staging/src/", "vendor/") for folder in tagged
        )
        left_out = ("vendor/k8s.io/code-generator/", "vendor/k8s.io/sample-apiserver/")
        inputs = ",".join(sorted(f"{ROOT}/{name}" for name in packages if not name.startswith(left_out)))
        options = ["-i", inputs, "-p", f"{ROOT}/pkg/generated/openapi", "-O", "zz_generated.openapi"]
        options += ["-h", "vendor/k8s.io/code-generator/hack/boilerplate.go.txt"]
        self._run(str(generator), *options, "-r", str(self._work / "violations"), cwd=self._source)

    def _go(self, *arguments: str) -> None:
        self._run("go", *arguments, cwd=self._source)

    def _run(self, *command: str, cwd: Path | None = None) -> None:
        try:
            done = subprocess.run(
                ["nice", "-n", "10", *command],
                cwd=cwd or self._work,
                env=self._environ,
                capture_output=True,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise Unavailable(f"cannot run {command[0]}: {error.strerror}") from error
        if done.returncode:
            output = " ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-3:])
            raise Unavailable(f"`{' '.join(command)[:200]}` ended with {done.returncode}: {output}")


def main() -> int:
    """Build them; 1 when that is impossible and this is CI."""
    if not FOLDER.is_dir():
        print(f"building Kubernetes {VERSION} (once; takes five minutes)", flush=True)
    begun = time.monotonic()
    try:
        build()
    except Unavailable as error:
        print(f"  not available: {error}")
        return 1 if os.environ.get("CI") else 0
    if (elapsed := time.monotonic() - begun) > 1:
        print(f"  built in {elapsed:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
