"""The features of a processor as each system tells them, with files and values in the place of other systems' own."""

import ctypes
import os
import platform
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bei import memory, processes
from bei.engines import cpus, processor
from bei.engines.processor import DEFAULT_CACHES, Caches, caches, processor_flags

AT_HWCAP, AT_HWCAP2, AT_PAGESZ = 16, 26, 6
GRAVITON2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"
M2 = """hw.optional.floatingpoint: 1
hw.optional.AdvSIMD: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_SME: 0
machdep.cpu.brand_string: Apple M2
"""
INTEL_MAC = """machdep.cpu.features: FPU FMA SSE4.2 F16C AVX1.0
machdep.cpu.leaf7_features: AVX2 BMI1
"""


def vector(*entries: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("=QQ", *entry) for entry in (*entries, (0, 0)))


@pytest.fixture
def on(monkeypatch, tmp_path):
    """on(machine, system="linux", cpuinfo=None, auxv=None): the flags there, by such files of /proc."""

    def flags(machine: str, system: str = "linux", cpuinfo: str | None = None, auxv: bytes | None = None) -> set[str]:
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(sys, "platform", system)
        (tmp_path / "self").mkdir()
        if cpuinfo is not None:
            (tmp_path / "cpuinfo").write_text(cpuinfo)
        if auxv is not None:
            (tmp_path / "self/auxv").write_bytes(auxv)
        return set(processor_flags(tmp_path))

    return flags


@pytest.fixture
def sysctl(monkeypatch, tmp_path):
    """sysctl(text): a program that says it, in the place of macOS' own."""

    def put(text: str) -> None:
        (tmp_path / "sysctl").write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\necho 'unknown oid' >&2; exit 1\n")
        (tmp_path / "sysctl").chmod(0o755)
        monkeypatch.setattr(processor, "_SYSCTL", str(tmp_path / "sysctl"))

    return put


def test_x86_by_cpuinfo(on):
    assert on("x86_64", cpuinfo="flags\t\t: fpu avx2 fma\nflags\t\t: fpu avx2 fma\n") == {"fpu", "avx2", "fma"}


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([(AT_HWCAP, 0xECFFFFFB), (AT_HWCAP2, 0x7F877FFF)], {"asimd", "asimddp", "i8mm", "bf16"}),  # Neoverse V1
        ([(AT_HWCAP, 0x119FFB), (AT_HWCAP2, 0)], {"asimd", "asimddp"}),  # Neoverse N1
        ([(AT_HWCAP, 0x8FB)], {"asimd"}),  # Cortex-A72, before AT_HWCAP2
    ],
)
def test_arm_by_the_auxiliary_vector(on, capabilities, expected):
    """/proc/cpuinfo of an emulator is its host's."""
    assert on("aarch64", auxv=vector((AT_PAGESZ, 4096), *capabilities), cpuinfo="flags : avx2\n") == expected


def test_arm_by_cpuinfo_where_the_vector_is_not_to_be_read(on):
    assert {"asimd", "asimddp"} < on("aarch64", cpuinfo=f"processor\t: 0\nFeatures\t: {GRAVITON2}\n")


@pytest.mark.parametrize(("machine", "system"), [("riscv64", "linux"), ("x86_64", "linux"), ("aarch64", "freebsd14")])
def test_nothing_is_told(on, machine, system):
    assert on(machine, system) == set()


def test_macos_on_arm_by_sysctl(on, sysctl):
    sysctl(M2)
    assert on("arm64", "darwin") == {"asimd", "asimddp", "i8mm", "bf16"}


def test_macos_on_x86_by_sysctl(on, sysctl):
    sysctl(INTEL_MAC)
    assert {"avx2", "fma", "f16c"} < on("x86_64", "darwin")


def test_macos_without_sysctl(on, monkeypatch):
    """Every ARM64 processor has NEON."""
    monkeypatch.setattr(processor, "_SYSCTL", "/no/such/program")
    assert on("arm64", "darwin") == {"asimd"}


@pytest.fixture
def linux_caches(monkeypatch, tmp_path):
    """linux_caches((level, type, size, shared_cpu_map), ...): the caches where the second processor has these files."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(processor, "allowed_cpus", lambda: frozenset({1, 2}))

    def read(*levels: tuple[str | None, ...]) -> Caches:
        for i, values in enumerate(levels):
            index = tmp_path / f"cpu1/cache/index{i}"
            index.mkdir(parents=True)
            for name, value in zip(("level", "type", "size", "shared_cpu_map"), values, strict=True):
                if value is not None:
                    (index / name).write_text(f"{value}\n")
        return caches(tmp_path)

    return read


def test_caches_of_linux_are_parts_of_a_processor(linux_caches):
    """A Xeon 8488C: two processors to a core, 96 to the last cache."""
    of_all = ",".join(["ffffffff"] * 3)
    pair = "00000000,00000000,00010001"
    levels = (("1", "Data", "48K", pair), ("1", "Instruction", "32K", pair), ("2", "Unified", "2048K", pair))
    assert linux_caches(*levels, ("3", "Unified", "107520K", of_all)) == Caches(24 << 10, 1 << 20, 1120 << 10)


def test_a_processor_without_a_third_cache(linux_caches):
    told = linux_caches(("1", "Data", "32K", "2"), ("2", "Unified", "1024K", "f"))
    assert told == Caches(32 << 10, 256 << 10, 256 << 10)


@pytest.mark.parametrize("size", [None, "", "0K", "unknown"])
def test_caches_that_linux_does_not_tell(linux_caches, size):
    assert linux_caches(("1", "Data", "64K", "2"), ("2", "Unified", size, "2")) == replace(
        DEFAULT_CACHES, first=64 << 10
    )


def test_no_cache_is_told(linux_caches):
    assert linux_caches() == DEFAULT_CACHES


def test_caches_of_macos_by_sysctl(monkeypatch, sysctl):
    monkeypatch.setattr(sys, "platform", "darwin")
    sysctl(M2)
    assert caches() == DEFAULT_CACHES
    efficient = "hw.cacheconfig: 8 1 4 0 0\nhw.l1dcachesize: 65536\nhw.l2cachesize: 4194304\n"
    sysctl(efficient)
    assert caches() == Caches(64 << 10, 1 << 20, 1 << 20)
    fast = ("l1dcachesize: 131072", "l2cachesize: 16777216", "cpusperl2: 4")
    sysctl(efficient + "".join(f"hw.perflevel0.{line}\n" for line in fast))
    assert caches() == Caches(128 << 10, 4 << 20, 4 << 20)
    sysctl("hw.cacheconfig: 8 2 2 8\nhw.l1dcachesize: 32768\nhw.l2cachesize: 262144\nhw.l3cachesize: 8388608\n")
    assert caches() == Caches(16 << 10, 128 << 10, 1 << 20)


def test_processors_without_affinity(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpus.available_cpus(tmp_path / "absent") == os.cpu_count()


def test_a_c_library_without_glibc_s_settings(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.give_back_large_blocks()
    memory.Trimmer()._trim(0)


def test_a_system_that_does_not_tell_a_process_its_size(monkeypatch):
    set_to = {}
    monkeypatch.setattr(processes, "_STATM", Path("/no/such/file"))
    monkeypatch.setattr(processes.resource, "setrlimit", lambda kind, bounds: set_to.update({kind: bounds}))
    processes.bound_memory(1 << 30)
    assert set_to == {processes.resource.RLIMIT_CORE: (0, 0)}
