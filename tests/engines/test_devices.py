"""`--devices`: its grammar, and the devices that machines have. The machines are folders with the kernel's files."""

import logging
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bei.engines import devices
from bei.engines.devices import ANY
from bei.errors import SetupError
from bei.settings import Settings
from bei.settings.devices import named, names_of, normalized, numbers_of, processors_of
from tests.support.configs import tiny_config
from tests.support.machines import UUIDS, machine


@pytest.mark.parametrize(
    ("value", "means"),
    [
        ("cuda", []),
        ("numa", []),
        ("cuda:1", [(1,)]),
        ("cuda:1, cuda:0", [(1,), (0,)]),
        ("cpu:0-2", [(0, 1, 2)]),
        ("cpu:0-1,cpu:2,3", [(0, 1), (2, 3)]),
        ("cpu:0-1,8-9,cpu:2-3,10-11", [(0, 1, 8, 9), (2, 3, 10, 11)]),
    ],
)
def test_the_grammar(value, means):
    assert numbers_of(normalized(value)) == means


def test_a_value_has_one_form():
    assert normalized(" cpu:3,0-1,2 , cpu:8,9,11") == "cpu:0-3,cpu:8-9,11"
    assert processors_of("cpu:0-3,cpu:8-9,11") == {0, 1, 2, 3, 8, 9, 11}
    assert processors_of("cuda:0,cuda:1") == processors_of("") == set()


SETS = st.lists(st.integers(0, 99), unique=True, min_size=1).flatmap(
    lambda numbers: st.integers(0, len(numbers) - 1).map(lambda cut: [numbers[:cut], numbers[cut:]])
)


@given(SETS)
def test_every_division_of_processors_can_be_written(sets):
    sets = [sorted(numbers) for numbers in sets if numbers]
    value = normalized(",".join(f"cpu:{','.join(map(str, numbers))}" for numbers in sets))
    assert numbers_of(value) == [tuple(numbers) for numbers in sets]
    assert normalized(value) == value
    assert names_of(value) == [named("cpu", numbers) for numbers in sets]


@given(st.text("cpudanm:,-0123 ") | st.text())
def test_any_text_is_devices_or_refused(text):
    with suppress(ValueError):
        value = normalized(text)
        assert normalized(value) == value


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        ("", "must be cuda, numa, or devices such as"),
        ("gpu:0", "must be cuda, numa"),
        ("0,1", "must be cuda, numa"),
        ("cpu", "must be cuda, numa"),
        ("cpu:", "must be cuda, numa"),
        ("cpu:0-", "must be cuda, numa"),
        ("cpu:0,,1", "must be cuda, numa"),
        ("cpu:-1", "must be cuda, numa"),
        ("cpu:0 1", "must be cuda, numa"),
        ("cpu:0-99999999999", "must be cuda, numa"),
        ("cpu:٣", "must be cuda, numa"),
        ("numa,cpu:0", "must be cuda, numa"),
        ("cuda,cuda:0", "must be cuda, numa"),
        ("cpu:0,cuda:0", "must be GPUs only or processors only"),
        ("cuda:0,1", "must name each GPU as a device of its own"),
        ("cuda:0-1", "must name each GPU as a device of its own"),
        ("cuda:x", "must be cuda, numa"),
        ("cpu:3-1", "must have the smaller number of a range first, as in 1-3"),
        ("cpu:0-3,cpu:3-5", "must not name cpu:3 twice"),
        ("cpu:0,0", "must not name cpu:0 twice"),
        ("cuda:1,cuda:1", "must not name cuda:1 twice"),
    ],
)
def test_a_value_that_names_no_devices_is_refused_by_its_setting(value, refusal):
    with pytest.raises(SetupError, match=f"^setting devices: {refusal}"):
        Settings.load(tiny_config(), environ={"BEI_DEVICES": value})


@pytest.mark.parametrize(
    ("flags", "refusal"),
    [
        ({"devices": "cpu:0", "threads": 2}, "devices and threads: a device has a thread for each of its processors"),
        ({"devices": "numa", "threads": 2}, "devices and threads"),
        ({"devices": "cuda", "engine": "native"}, "devices and engine: native does not run on cuda"),
        ({"devices": "cpu:0", "engine": "tensorrt"}, "devices and engine: tensorrt does not run on cpu"),
        ({"devices": "cpu:0", "engine": "static"}, "devices and engine: static does not run on cpu"),
    ],
)
def test_settings_that_contradict_the_devices(flags, refusal):
    with pytest.raises(SetupError, match=refusal):
        Settings.load(tiny_config(), environ={}, **flags)


def test_without_devices_an_engine_takes_what_it_finds(tmp_path):
    assert machine(tmp_path).devices(None) == (ANY,)
    assert not ANY.processors
    assert not ANY.variables


def test_sets_of_processors_hide_the_gpus(tmp_path):
    first, second = machine(tmp_path, gpus=2).devices("cpu:0-1,cpu:2,5")
    assert (first.name, first.processors) == ("cpu:0-1", {0, 1})
    assert (second.name, second.processors) == ("cpu:2,5", {2, 5})
    assert first.variables == second.variables == {"CUDA_VISIBLE_DEVICES": ""}


def test_each_numa_node_is_a_device_of_the_processors_that_may_be_used(tmp_path):
    nodes = [f"{2 * i}-{2 * i + 1},{2 * i + 64}" for i in range(11)]  # node10 is after node2
    found = machine(tmp_path, nodes=nodes, allowed=[*range(2, 6), 64, 66, 21]).devices("numa")
    assert [device.name for device in found] == ["cpu:64", "cpu:2-3,66", "cpu:4-5", "cpu:21"]
    assert found[1].processors == {2, 3, 66}


def test_a_node_of_memory_alone_is_no_device(tmp_path):
    assert [of.name for of in machine(tmp_path, nodes=["0-7", ""]).devices("numa")] == ["cpu:0-7"]


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        ("cpu:6-9", "devices cpu:8-9: not among the processors of this process, which are cpu:0-7"),
        ("numa", "devices numa: /sys/devices/system/node has no node with processors of this process"),
        ("cuda", "devices cuda: this machine shows no NVIDIA GPU"),
        ("cuda:0", "devices cuda:0: this machine shows no NVIDIA GPU"),
    ],
)
def test_devices_that_are_not_here_are_refused_by_name(tmp_path, value, refusal):
    with pytest.raises(SetupError, match=refusal):
        machine(tmp_path).devices(value)


def test_a_gpu_that_is_not_here_is_refused_by_name(tmp_path):
    with pytest.raises(SetupError, match="devices cuda:2: this machine shows 2 GPUs, from cuda:0 on"):
        machine(tmp_path, gpus=2).devices("cuda:0,cuda:2")


def test_a_gpu_runs_beside_the_processors_of_its_node(tmp_path):
    first, second = machine(tmp_path, gpus=2, allowed=range(1, 8)).devices("cuda")
    assert (first.name, first.processors) == ("cuda:0", {1, 2, 3})
    assert (second.name, second.processors) == ("cuda:1", {4, 5, 6, 7})
    assert second.variables == {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("visible", "names", "processors"),
    [
        ("1", ["1"], [{4, 5, 6, 7}]),
        (f"{UUIDS[1]},{UUIDS[0]}", [UUIDS[1], UUIDS[0]], [{4, 5, 6, 7}, {0, 1, 2, 3}]),
        ("GPU-7b", ["GPU-7b"], [{4, 5, 6, 7}]),
        ("MIG-1,0", ["MIG-1", "0"], [set(), {0, 1, 2, 3}]),
    ],
)
def test_numbers_are_places_among_the_visible_gpus(tmp_path, visible, names, processors):
    found = machine(tmp_path, gpus=2, CUDA_VISIBLE_DEVICES=visible).devices("cuda")
    assert [device.name for device in found] == [f"cuda:{number}" for number in range(len(names))]
    assert [device.variables["CUDA_VISIBLE_DEVICES"] for device in found] == names
    assert [device.processors for device in found] == processors


@pytest.mark.parametrize("visible", ["", "-1"])
def test_gpus_that_are_hidden_are_none(tmp_path, visible):
    with pytest.raises(SetupError, match="shows no NVIDIA GPU"):
        machine(tmp_path, gpus=2, CUDA_VISIBLE_DEVICES=visible).devices("cuda")


def test_a_container_with_less_time_than_processors_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(devices, "available_cpus", lambda: 2)
    with caplog.at_level(logging.WARNING, "bei"):
        machine(tmp_path).devices("cpu:0-3")
    assert "4 processors are named, and the container has time for 2" in caplog.text


def test_a_system_that_binds_no_process_refuses_processors(tmp_path, monkeypatch):
    monkeypatch.delattr("os.sched_setaffinity")
    with pytest.raises(SetupError, match="devices: this system binds no process to processors; set threads"):
        machine(tmp_path).devices("cpu:0")
    assert machine(tmp_path, gpus=1).devices("cuda")[0].processors == frozenset()
