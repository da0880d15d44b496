"""What goes into the build of an image, without an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gusset.containers.build.context import write_context
from gusset.containers.build.image_recipe import ImageRecipe
from gusset.containers.engine.registry import check_image_name
from gusset.errors import HostError
from tests.conftest import Cli, as_ordinary_process

pytestmark = pytest.mark.slow

SERVER = {
    "start_command": "serve",
    "server_port": 8000,
    "predict_endpoint": "/predict",
    "readiness_endpoint": "/ready",
    "liveness_endpoint": "/alive",
}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("data", "data_dir"),
        ("packages", "bundled_packages_dir"),
        ("shared", "external_package_dirs[0]"),
    ],
)
def test_a_folder_that_cannot_be_read_is_a_problem_of_the_config(
    tmp_path: Path, environ: dict[str, str], name: str, key: str
) -> None:
    """It is reported with its path, the key that names it, and what to do."""
    config = {
        "base_image": {"image": "busybox"},
        "docker_server": SERVER,
        "data_dir": "data",
        "bundled_packages_dir": "packages",
        "external_package_dirs": ["shared"],
    }
    model = tmp_path / "model"
    for folder in ("data", "packages", "shared"):
        (model / folder).mkdir(parents=True)
    (model / "config.yaml").write_text(yaml.safe_dump(config))
    (model / name).chmod(0)
    command = [*as_ordinary_process(), sys.executable, "-m", "gusset", "check", str(model)]
    done = subprocess.run(command, capture_output=True, env=environ, text=True, check=False)
    (model / name).chmod(0o755)
    assert done.returncode == 4
    assert f"the folder {model / name} cannot be read: Permission denied" in done.stderr
    assert key in done.stderr
    assert "let the account that runs gusset read it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    """As one that was removed after the config had been read."""
    (tmp_path / "context").mkdir()
    recipe = ImageRecipe(name="removed", base="busybox", data=tmp_path / "removed")
    with pytest.raises(HostError, match=f"{tmp_path}/removed cannot be copied for the build.*No such file"):
        write_context(recipe.plan(""), tmp_path / "context")


MODEL = "class Model:\n    def predict(self, data):\n        return data\n"


def write_folder(folder: Path, **config: object) -> Path:
    """A Python model with data, a package, and files that no image gets."""
    for name, text in {
        "model/model.py": MODEL,
        "data/weights.txt": "heavy",
        "packages/ours.py": "NAME = 'ours'",
        "model/__pycache__/model.cpython-311.pyc": "compiled",
        ".git/config": "[remote]",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    base = {"base_image": {"image": "localhost/base"}, "secrets": {"a_token": None}}
    (folder / "config.yaml").write_text(yaml.safe_dump(base | config))
    return folder


def context(gusset: Cli, folder: Path, status: int = 0, **environ: str) -> Path:
    """The context that `gusset build --context-only` writes."""
    written = folder.parent / f"{folder.name}-context"
    gusset("build", str(folder), "--context-only", str(written), status=status, **environ)
    return written


def files(folder: Path) -> dict[str, tuple[int, float, bytes]]:
    """Mode, time and content of all in a folder, by path."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_mtime,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
        if "install/uv" not in str(path)  # a hard link of what is installed here
    }


def test_two_clones_of_a_folder_have_the_same_context(gusset: Cli, tmp_path: Path) -> None:
    """Whatever the times and modes of their files are."""
    one, other = (write_folder(tmp_path / name / "model") for name in ("one", "other"))
    (other / "model" / "model.py").chmod(0o600)
    os.utime(other / "data" / "weights.txt", (1, 1))
    assert files(context(gusset, one)) == files(context(gusset, other))


def test_the_context_of_a_model_has_what_it_needs_and_no_more(gusset: Cli, tmp_path: Path) -> None:
    """Neither caches nor version control nor compiled modules; the data is a layer of its own."""
    written = context(gusset, write_folder(tmp_path / "model"))
    assert (written / "gusset" / "gusset" / "runtime" / "http_connection.py").is_file()
    assert [*(written / "gusset").rglob("*.so")] == []  # `make compiled` puts some beside the source
    assert (written / "data" / "weights.txt").read_text() == "heavy"
    found = {
        str(path.relative_to(written / "app")) for path in (written / "app").rglob("*") if path.is_file()
    }
    assert found == {"config.yaml", "model/model.py", "packages/ours.py"}
    text = (written / "Containerfile").read_text()
    assert "FROM localhost/base\n" in text
    assert "USER 60000:60000" in text and "EXPOSE 8080" in text and "HEALTHCHECK" in text
    assert 'dev.gusset.folder.digest="sha256:' in text


def test_a_login_in_a_url_is_not_in_the_context(gusset: Cli, tmp_path: Path) -> None:
    """It is mounted as a .netrc."""
    folder = write_folder(
        tmp_path / "model",
        requirements=["--extra-index-url https://${USER_AND_WORD}@index.example/wheels", "left"],
    )
    written = context(
        gusset,
        folder,
        USER_AND_WORD="someone:hunter2-hunter2",
        UV_DEFAULT_INDEX="https://other:hunter3-hunter3@mirror.example/simple",
    )
    everything = b"".join(content for _, _, content in files(written).values())
    assert b"hunter" not in everything
    assert b"https://index.example/wheels" in everything
    assert b"UV_DEFAULT_INDEX=https://mirror.example/simple" in everything
    assert (
        b"--mount=type=secret,id=gusset-netrc,target=/run/secrets/gusset/gusset-netrc,required=true"
        in everything
    )


def test_a_change_of_the_requirements_changes_the_instruction(gusset: Cli, tmp_path: Path) -> None:
    """Old engines look only at the text of a command, and not at the files that it mounts."""
    texts = []
    for name, requirement in (("one", "left==1"), ("other", "left==2")):
        folder = write_folder(tmp_path / name, requirements=[requirement])
        lines = (context(gusset, folder) / "Containerfile").read_text().splitlines()
        texts.append(next(line for line in lines if "requirements.txt" in line))
    assert texts[0] != texts[1]


def test_local_requirements_and_folders_of_packages_are_copied(gusset: Cli, tmp_path: Path) -> None:
    """Also from outside of the model's folder: the model finds them by the same relative paths."""
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "module.py").write_text("X = 1")
    folder = write_folder(tmp_path / "model", requirements=["./lib"], external_package_dirs=["../common"])
    (folder / "lib").mkdir()
    (folder / "lib" / "pyproject.toml").write_text("[project]\nname = 'lib'\nversion = '1'\n")
    written = context(gusset, folder)
    assert 'COPY ["folders/0", "/common"]' in (written / "Containerfile").read_text()
    assert (written / "folders" / "0" / "module.py").is_file()
    assert (written / "install" / "local" / "0" / "lib" / "pyproject.toml").is_file()
    lines = (written / "install" / "requirements.txt").read_text()
    assert "/tmp/gusset-install/local/0/lib" in lines and str(tmp_path) not in lines


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"a_token": "relative"}, b"cannot mount a secret at this path"),
        ({"a_token": "/a b"}, b"cannot mount a secret at this path"),
        ({"a_token": ""}, b"cannot mount a secret at this path"),
        ({"a_token": "/x", "b_token": "/x"}, b"two secrets have the same path"),
        ({"a": "/pip.conf", "b": "/uv.toml"}, b"only one pip.conf or uv.toml"),
        ({"DOCKER_REGISTRY_x,y": "/x"}, b"cannot mount a secret of this name"),
    ],
)
def test_secrets_that_cannot_be_mounted_are_refused(
    gusset: Cli, tmp_path: Path, mapping: dict[str, str], text: bytes
) -> None:
    folder = write_folder(
        tmp_path / "model", build={"secret_to_path_mapping": mapping}, build_commands=["true"]
    )
    done = gusset("build", str(folder), "--context-only", str(tmp_path / "new"), status=3)
    assert text in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_folder_with_files_is_not_overwritten(gusset: Cli, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    done = gusset("build", str(folder), "--context-only", str(folder), status=2)
    assert b"is not empty" in done.stderr


def test_a_requirement_that_is_left_out_is_named(gusset: Cli, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", requirements_file="pyproject.toml")
    (folder / "pyproject.toml").write_text("[project]\nname = 'm'\ndependencies = ['not a requirement!']\n")
    done = gusset("build", str(folder), "--context-only", str(tmp_path / "new"))
    assert b"warning: " in done.stderr
    assert b"an entry of project.dependencies in pyproject.toml is left out" in done.stderr


def test_push_needs_a_name(gusset: Cli, tmp_path: Path) -> None:
    done = gusset("build", str(write_folder(tmp_path / "model")), "--push", status=2)
    assert b"--tag" in done.stderr


def test_a_context_in_the_folder_itself_does_not_contain_itself(gusset: Cli, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", data_dir="data")
    gusset("build", str(folder), "--context-only", str(folder / "data" / "context"))
    written = folder / "data" / "context"
    assert (written / "data" / "weights.txt").is_file()
    assert not (written / "data" / "context").exists()


def test_links_to_what_the_image_does_not_have_are_warnings(gusset: Cli, tmp_path: Path) -> None:
    """They stay links: no file from outside of the folder gets into the image."""
    (tmp_path / "outside").write_text("of the machine")
    folder = write_folder(tmp_path / "model")
    (folder / "data" / "relative").symlink_to("../../outside")
    (folder / "data" / "absolute").symlink_to(tmp_path / "outside")
    (folder / "data" / "good").symlink_to("weights.txt")
    (folder / "model" / "good").symlink_to("../data/weights.txt")
    written = tmp_path / "context"
    done = gusset("build", str(folder), "--context-only", str(written))
    text = done.stderr.decode()
    assert "has the link relative, but not ../../outside" in text
    assert f"has the link absolute, but not {tmp_path}/outside" in text
    assert text.count("has the link") == 2
    assert (written / "data" / "absolute").is_symlink() and (written / "app" / "model" / "good").is_symlink()


def test_links_of_the_machine_are_followed(gusset: Cli, tmp_path: Path) -> None:
    """uv, certificates and wheels may be links here; the build could not follow them."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (tmp_path / "left-1-py3-none-any.whl").write_bytes(b"wheel")
    (wheels / "left-1-py3-none-any.whl").symlink_to("../left-1-py3-none-any.whl")
    (tmp_path / "bundle.pem").write_text("certificates")
    (tmp_path / "link.pem").symlink_to("bundle.pem")
    folder = write_folder(tmp_path / "model")
    written = context(gusset, folder, PIP_FIND_LINKS=str(wheels), PIP_CERT=str(tmp_path / "link.pem"))
    for name in ("links/0/left-1-py3-none-any.whl", "certificates.pem", "uv"):
        assert (written / "install" / name).is_file(), name
        assert not (written / "install" / name).is_symlink(), name


def test_a_dockerignore_hides_nothing_and_is_a_file_like_others(gusset: Cli, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / ".dockerignore").write_text("**\n")
    (folder / "data" / ".dockerignore").write_text("**\n")
    written = context(gusset, folder)
    assert (written / "app" / ".dockerignore").is_file() and (written / "data" / ".dockerignore").is_file()
    assert not (written / ".dockerignore").exists()  # the engine reads only this one


@pytest.mark.parametrize(
    "tags", [["Team/Model"], ["a b"], ["-x"], [""], ["model@sha256:ab"], ["host:5000/Model"], ["a", "b"]]
)
def test_a_name_that_no_image_can_have_is_refused_before_the_build(
    gusset: Cli, tmp_path: Path, tags: list[str]
) -> None:
    folder = write_folder(tmp_path / "model")
    done = gusset("build", str(folder), *(f"--tag={tag}" for tag in tags), status=2)
    assert b"cannot be the name of an image" in done.stderr or b"given twice" in done.stderr


@pytest.mark.parametrize(
    "name", ["model", "team/my-model:1.2", "localhost/a__b", "127.0.0.1:5000/team/model:1", "REG.example/m"]
)
def test_an_image_name_that_engines_accept_is_accepted(name: str) -> None:
    check_image_name(name)


def test_the_image_overrides_what_the_base_image_sets(gusset: Cli, tmp_path: Path) -> None:
    """Its user, command, health check and stop signal; a volume at /secrets is no obstacle."""
    text = (context(gusset, write_folder(tmp_path / "model")) / "Containerfile").read_text()
    for line in (
        "USER 0",
        "USER 60000:60000",
        "STOPSIGNAL SIGTERM",
        "CMD []",
        'ENTRYPOINT ["/opt/gusset/serve"]',
    ):
        assert f"\n{line}\n" in text, line
    assert "HEALTHCHECK " in text and "mkdir -p /secrets" in text
