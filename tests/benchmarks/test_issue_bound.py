"""The counting of ARM64's inner loops finds the right loop, reads llvm-mca, and fails below the bound."""

import sys
from pathlib import Path

import pytest

from benchmarks import issue_bound

ASSEMBLY = """
	.text
.L2:
	usmmla v0.4s, v1.16b, v2.16b
	bfmmla v0.4s, v1.8h, v2.8h
	sdot v0.4s, v1.16b, v2.4b[0]
	fmla v0.4s, v1.4s, v2.s[0]
	b.ne .L2
.L3:
	ldr q1, [x1], 16
	.loc 1 2
	usmmla v0.4s, v1.16b, v2.16b
	usmmla v3.4s, v1.16b, v2.16b
	bfmmla v0.4s, v1.8h, v2.8h
	bfmmla v3.4s, v1.8h, v2.8h
	sdot v0.4s, v1.16b, v2.4b[0]
	sdot v3.4s, v1.16b, v2.4b[0]
	fmla v0.4s, v1.4s, v2.s[0]
	fmla v3.4s, v1.4s, v2.s[0]
	bne .L3
	ret
.L4:
	usmmla v0.4s, v1.16b, v2.16b
	b .L5
"""


def test_the_loop_of_the_largest_tile_is_counted():
    loop = issue_bound.inner_loop(ASSEMBLY, "usmmla")
    assert (loop[0], loop[1].split()[0], loop[-1]) == ("ldr q1, [x1], 16", "usmmla", "bne .L3")
    assert len(loop) == 10
    assert issue_bound.products_of(loop, "bfmmla") == ["bfmmla v0.4s, v1.8h, v2.8h", "bfmmla v3.4s, v1.8h, v2.8h"]


@pytest.fixture
def counted(tmp_path, monkeypatch, capsys):
    """counted(cycles of a round): the exit status, and the table, where two products take two cycles alone."""

    def program(name: str, script: str) -> Path:
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return file

    def count(cycles: float, said: str = "") -> tuple[int, list[str]]:
        (tmp_path / "assembly").write_text(ASSEMBLY)
        compiler = program("c++", f"cat {tmp_path / 'assembly'}")
        total = round(cycles * issue_bound.ROUNDS)
        mca = program("llvm-mca", f"echo '{said}' >&2; echo 'Total Cycles:  {total}'; echo 'Block RThroughput: 2.0'")
        monkeypatch.setattr(sys, "argv", ["issue_bound", "--compiler", str(compiler), "--llvm-mca", str(mca)])
        return issue_bound.main(), capsys.readouterr().out.splitlines()[2:]

    return count


def test_the_status_says_whether_the_bound_is_reached(counted):
    status, rows = counted(2.3)
    assert status == 0 and len(rows) == len(issue_bound.KERNELS) * len(issue_bound.PROCESSORS)
    assert rows[0] == "| usmmla | neoverse-v1 | 2 | 2.30 | 2.00 | 87% |"
    assert counted(2.4)[0] == 1


def test_an_old_llvm_is_refused(counted):
    with pytest.raises(SystemExit, match="LLVM 19 or newer is needed"):
        counted(2, "warning: 'neoverse-v2' is not a recognized processor for this target".replace("'", ""))
