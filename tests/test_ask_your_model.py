"""The page on asking a model of one's own: its commands and its code run as they stand there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_kis.analysis import load_curves_csv
from tests.megatron_kis.huggingface.models import write_model
from tests.pages import ROOT, blocks, run
from tests.sources import write_sources

PAGE = ROOT / "docs" / "how-to" / "ask-your-model.md"


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sources = write_sources(tmp_path, documents=10)
    names = sources.triples.read_text(encoding="utf-8").splitlines()
    write_model(tmp_path / "MODEL_DIR", texts=names, vocab_size=512)
    ran = 0
    for block in blocks(PAGE):
        if block.language != "sh":
            continue
        for line in block.text.splitlines():
            if not line.startswith("kis"):
                continue
            ended = run(line, tmp_path)
            assert ended.returncode == 0, f"{line}\n{ended.stdout}\n{ended.stderr}"
            ran += 1
            if line.endswith("--json"):
                assert json.loads(ended.stdout)["computed"] == "prefix trees"
    assert ran == 8
    assert set(load_curves_csv(tmp_path / "curves.csv")["frequency"]) == {0, 20}
    code = "\n".join(block.text for block in blocks(PAGE) if block.language == "python")
    (tmp_path / "own.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "own.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    *rows, trees, plain = ended.stdout.splitlines()
    assert {row.split()[0] for row in rows} == {"infused", "control"}
    assert "'prefix trees'" in trees
    assert "'plain rows'" in plain
