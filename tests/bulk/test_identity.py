"""Everything that changes a row makes another job: a resumed run never joins the rows of two."""

import inspect
import json
from dataclasses import fields, replace

import pytest

from bei.bulk import identity as identities
from bei.bulk.identity import identity
from bei.bulk.inputs import scan
from bei.bulk.parts import Parts
from bei.bulk.worker import Job
from bei.checkpoint.load import Checkpoint, read
from bei.checkpoint.texts import Casing, Prompts, Specials
from bei.settings import ModelSettings, Settings
from bei.settings.groups import NO_ROW
from tests.support.configs import tiny_config
from tests.support.tiny_models import random_model, save, write_json

OF_ROWS = {
    *("attention", "auto_truncate", "calib_dataset", "calib_max_seq_length", "calib_size", "default_prompt"),
    *("default_prompt_name", "engine", "max_num_tokens", "max_seq_len", "pooling", "precision", "quantization"),
}
OF_NO_ROW = {
    *("source", "repo", "revision", "credential"),  # the content is hashed, wherever it is
    *("base_model", "route", "rerank_template", "rerank_order", "threads", "tokenization_workers", "max_batch_size"),
    *("host", "port", "workers", "api_key", "api_key_file", "protect_all", "tls_cert", "tls_key", "drain_seconds"),
    *("json_output", "access_log", "otlp_endpoint", "otlp_service_name", "payload_limit", "max_bytes_in_flight"),
    *("max_client_batch_size", "max_concurrent_requests", "max_queue_tokens", "max_queue_texts", "max_queue_seconds"),
    *("max_engine_restarts", "max_connections", "cache_dir", "max_download_bytes", "allow_private_urls"),
    *("training_dir", "without_effect", "hub_cache", "cors_allow_origin", "uds_path", "allowed_host"),
}


def test_every_setting_is_a_part_of_a_job_or_is_known_to_change_no_row():
    """A setting of the model is a part unless its declaration says that it changes no row; settings of other groups
    change none."""
    counted = {*identities.OF_SETTINGS, "served_model_name"}
    assert not counted & OF_NO_ROW
    assert counted >= OF_ROWS
    marked = {name for name, field in Settings.model_fields.items() if NO_ROW in field.metadata}
    of_others = Settings.model_fields.keys() - inspect.get_annotations(ModelSettings).keys()
    assert counted | marked | of_others == set(Settings.model_fields), "does the new setting change a vector?"
    assert not counted & of_others


@pytest.fixture
def of(tmp_path):
    """The identity of a job on a model's folder."""
    model = save(tmp_path / "model", random_model("bert"))
    (tmp_path / "in.txt").write_text("cat\n")
    settings = Settings.load(tiny_config(model), environ={}, cache_dir=tmp_path / "cache")
    job = Job(settings, scan(tmp_path / "in.txt", "text", 2), Parts(tmp_path, 1), None, True, None)

    def made(checkpoint: Checkpoint | None = None, **changes):
        checkpoint = checkpoint or read(model, "tiny")
        return identity(replace(job, settings=settings.model_copy(update=changes)), checkpoint, 2)

    made.model = model
    return made


CHANGES = {
    "max_tokens": 5,
    "token_types": False,
    "lowercase": True,
    "reading": "bare",
    "unknown_token": "x",
    "prompts": Prompts({"query": "the old "}),
    "dtype": "bfloat16",
    "labels": ("a",),
    "scoring": "sigmoid",
    "task": "entities",
    "added_specials": Specials("[CLS]"),
    "dimensions": 8,
    "max_terms": 3,
    "casing": Casing(lowercase=False),
    "truncation_side": "left",
}
ELSEWHERE = {
    "spec",
    "late_interaction",
    "pair_template",
    "list_template",
}  # of their own types; what is not in ELSEWHERE is hashed alike


def test_every_field_of_a_checkpoint(of):
    checkpoint = read(of.model, "tiny")
    names = {field.name for field in fields(Checkpoint)} - set(identities.ELSEWHERE)
    assert names - ELSEWHERE == CHANGES.keys(), "what changes the new field, and does it change a vector?"
    before = of(checkpoint)
    for name, value in CHANGES.items():
        after = of(replace(checkpoint, **{name: value}))
        assert {key for key in before if before[key] != after[key]} == {f"checkpoint.{name}"}
    assert {f"checkpoint.{name}" for name in names} <= before.keys()
    assert json.loads(json.dumps(before)) == before


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        ("tokenizer.json", {"version": "1.1"}, "tokenizer"),
        ("config_sentence_transformers.json", {"prompts": {"query": "the old "}}, "checkpoint.prompts"),
        ("config.json", {"layer_norm_eps": 0.25}, "checkpoint.spec"),
        (
            "1_Pooling/config.json",
            {"pooling_mode": "max"},
            "checkpoint.spec",
        ),
    ],
)
def test_a_file_beside_the_weights(of, file, change, named):
    before, place = of(), of.model / file
    write_json(place, {**(json.loads(place.read_text()) if place.exists() else {}), **change})
    after = of()
    assert named in {key for key in before if before[key] != after[key]}


def test_settings_and_the_version(of, monkeypatch):
    before = of()
    assert of(engine="native") != before != of(default_prompt="a ")
    monkeypatch.setattr(identities, "__version__", "other")
    assert of()["bei"] == "other"
