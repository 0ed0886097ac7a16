"""What an installer gets: which form, which files, and what happens where nothing can be compiled."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import busdma
from busdma import segments

ROOT = Path(__file__).resolve().parent.parent


def copy_of_the_project(where: Path) -> Path:
    """The files that make a distribution, away from the tree: a build leaves things beside its setup.py."""
    where.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "Makefile"):
        shutil.copy(ROOT / name, where)
    leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in ("src", "tests", "requirements", "tools"):
        shutil.copytree(ROOT / name, where / name, ignore=leftovers)
    return where


def build(project: Path, kind: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Build the wheel or sdist with the back end that pip would call, into project/dist."""
    call = f"import setuptools.build_meta as back_end; back_end.build_{kind}('dist')"
    inherited = {name: value for name, value in os.environ.items() if name not in ("BUSDMA_COMPILE", "CC", "LDSHARED")}
    return subprocess.run(
        [sys.executable, "-c", call],
        cwd=project,
        env=inherited | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def names_in_wheel(project: Path) -> set[str]:
    (wheel,) = (project / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def extension_modules(names: set[str]) -> list[str]:
    return [name for name in names if name.endswith((".so", ".pyd"))]


def test_compiled_says_which_form_was_imported() -> None:
    assert busdma.COMPILED is (not str(segments.__file__).endswith(".py"))


def test_the_form_is_the_one_that_was_asked_for() -> None:
    expected = os.environ.get("BUSDMA_EXPECT_COMPILED", str(int(busdma.COMPILED)))
    assert busdma.COMPILED is {"0": False, "1": True}[expected]


def test_nothing_is_needed_at_run_time() -> None:
    assert [line for line in importlib.metadata.requires("busdma") or [] if "extra ==" not in line] == []


def test_importing_busdma_imports_the_standard_library_only() -> None:
    script = (
        "import sys; before = set(sys.modules); import busdma; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    # Cython registers the types it shares between its modules under a name of its own; that is no import.
    assert [name for name in done.stdout.split() if not name.startswith(("_cython_", "cython_runtime"))] == ["busdma"]


def test_never_gives_a_pure_wheel_with_every_source_file(tmp_path: Path) -> None:
    project = copy_of_the_project(tmp_path / "project")
    done = build(project, "wheel", BUSDMA_COMPILE="never")
    assert done.returncode == 0, done.stderr
    names = names_in_wheel(project)
    assert extension_modules(names) == []
    source = ROOT / "src"
    wanted = {str(path.relative_to(source)) for path in source.rglob("*.py") if path.is_file()}
    wanted |= {str(path.relative_to(source)) for path in source.glob("busdma/*.pxd")}
    wanted |= {str(path.relative_to(source)) for path in source.glob("busdma/bench/*.c")}
    wanted |= {"busdma/py.typed"}
    assert wanted <= names
    assert {name for name in names if name.startswith(("busdma/", "busdma_"))} == wanted


def test_auto_installs_pure_where_the_compiler_fails(tmp_path: Path) -> None:
    project = copy_of_the_project(tmp_path / "project")
    done = build(project, "wheel", BUSDMA_COMPILE="auto", CC="/bin/false")
    assert done.returncode == 0, done.stderr
    names = names_in_wheel(project)
    assert extension_modules(names) == []
    assert "busdma/segments.py" in names


def test_auto_installs_pure_without_cython(tmp_path: Path) -> None:
    project = copy_of_the_project(tmp_path / "project")
    broken = tmp_path / "broken" / "Cython"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('not here')\n")
    done = build(project, "wheel", BUSDMA_COMPILE="auto", PYTHONPATH=str(broken.parent))
    assert done.returncode == 0, done.stderr
    assert "no Cython" in done.stderr
    assert extension_modules(names_in_wheel(project)) == []


def test_require_fails_where_the_compiler_fails(tmp_path: Path) -> None:
    project = copy_of_the_project(tmp_path / "project")
    done = build(project, "wheel", BUSDMA_COMPILE="require", CC="/bin/false")
    assert done.returncode != 0
    assert "/bin/false" in done.stderr
    assert not list((project / "dist").glob("*.whl"))


@pytest.mark.parametrize("word", ["", "yes", "AUTO"])
def test_an_unknown_compile_mode_is_named(tmp_path: Path, word: str) -> None:
    project = copy_of_the_project(tmp_path / "project")
    done = build(project, "wheel", BUSDMA_COMPILE=word)
    assert done.returncode != 0
    assert f"BUSDMA_COMPILE is {word!r}: use one of auto, require, never" in done.stderr


def test_an_editable_install_is_pure_and_leaves_the_tree_clean(tmp_path: Path) -> None:
    project = copy_of_the_project(tmp_path / "project")
    done = build(project, "editable", BUSDMA_COMPILE="auto")
    assert done.returncode == 0, done.stderr
    assert extension_modules({path.name for path in project.rglob("*")}) == []
    refused = build(project, "editable", BUSDMA_COMPILE="require")
    assert refused.returncode != 0
    assert "an editable install is always pure" in refused.stderr


def test_the_sdist_can_be_built_and_tested(tmp_path: Path) -> None:
    project = copy_of_the_project(tmp_path / "project")
    done = build(project, "sdist", BUSDMA_COMPILE="auto")
    assert done.returncode == 0, done.stderr
    (sdist,) = (project / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {str(path.relative_to(project)) for top in ("src", "tests") for path in (project / top).rglob("*.py")}
    wanted |= {"pyproject.toml", "setup.py", "Makefile", "LICENSE", "README.md", "requirements/test.lock"}
    wanted |= {"src/busdma/segments.pxd", "src/busdma/py.typed", "tools/toolchain.py"}
    assert wanted <= names
    assert [name for name in names if name.endswith((".so", ".o")) or name.startswith("build/")] == []


def test_the_locks_name_no_place() -> None:
    locks = sorted((ROOT / "requirements").glob("*.lock"))
    assert [lock.name for lock in locks] == ["build.lock", "dev.lock", "test.lock"]
    for lock in locks:
        text = lock.read_text()
        assert "==" in text
        assert "--hash=sha256:" in text
        assert not [word for word in ("://", "--index", "--find-links", " @ ", "-e ") if word in text]
