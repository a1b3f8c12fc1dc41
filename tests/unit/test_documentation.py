"""The README and docs/: what they tell a reader to type works, links lead somewhere, the README stays short.

The blocks of a page run in order, as a reader would type them, in a folder that holds the models that pages speak of.
A block that cannot run in a test has a comment above it, `<!-- not run: the reason -->`.
"""

import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from support.golden import model_folder
from support.models import hf_bert, tokenizer, tokenizer_folder
from support.paired import PAIRED
from transformers import PreTrainedTokenizerFast, ViTConfig, ViTForImageClassification
from typer.testing import CliRunner

from tl_vzero.cli import app

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
MOST_WORDS = 900
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\]\((?!https?://)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
ONLY_READ = ("bibtex", "{toctree}", "{eval-rst}", "{help}")


class Block(NamedTuple):
    language: str
    code: str
    reason: str | None
    place: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            match["language"].split(" ")[0],
            match["code"],
            match["reason"],
            f"{name_of(page)}:{text[: match.start('code')].count(chr(10)) + 1}",
        )
        for match in BLOCK.finditer(text)
    ]


BLOCKS = {page: blocks_of(page) for page in PAGES}
RUN = [page for page in PAGES if any(b.language in ("python", "bash", "toml") and not b.reason for b in BLOCKS[page])]
NOT_RUN = [block for blocks in BLOCKS.values() for block in blocks if block.reason]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders `my-bert`, `gpt2`, `my-bart` and `my-vit`: tiny, with random weights."""
    folder = tmp_path_factory.mktemp("models")
    hf_bert().save_pretrained(folder / "my-bert")
    segments = ["input_ids", "token_type_ids", "attention_mask"]
    PreTrainedTokenizerFast.from_pretrained(tokenizer_folder(), model_input_names=segments).save_pretrained(
        folder / "my-bert"
    )
    shutil.copytree(model_folder("tiny-gpt2"), folder / "gpt2")
    PAIRED["BART"].tiny().save_pretrained(folder / "my-bart")
    tokenizer().save_pretrained(folder / "my-bart")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vit = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))
    vit.save_pretrained(folder / "my-vit")
    return folder


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_what_a_page_tells_to_type_works(
    page: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in models.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS[page]:
        if block.reason is None:
            run(block, names)


def run(block: Block, names: dict[str, object]) -> None:
    if block.language == "python":
        exec(compile(block.code, block.place, "exec"), names)
    elif block.language == "bash":
        for line in block.code.splitlines():
            words = shlex.split(line, comments=True)
            assert words[:1] == ["tl-vzero"], f"{block.place}: {line!r} is no command of ours; say why it is not run"
            result = CliRunner().invoke(app, words[1:], prog_name="tl-vzero")
            assert result.exit_code == 0, f"{block.place}: {line}\n{result.output}"
    elif block.language == "toml":
        tomllib.loads(block.code)
    else:
        assert block.language in ONLY_READ, f"{block.place}: nobody tries a block of {block.language!r}"


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_what_is_not_run_says_why(block: Block) -> None:
    if block.language == "python":
        compile(block.code, block.place, "exec")
    pytest.skip(str(block.reason))


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= MOST_WORDS


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    lost = []
    for match in LINK.finditer(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        linked = page if not match["path"] else (page.parent / match["path"]).resolve()
        if not linked.exists() or (match["anchor"] and match["anchor"] not in anchors_of(linked)):
            lost.append(match[0])
    assert not lost


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub and the site give to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_contents() -> None:
    pages = {page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in PAGES[1:]} - {"index"}
    listed = {line for block in blocks_of(ROOT / "docs" / "index.md") for line in block.code.splitlines()}
    assert pages <= listed
