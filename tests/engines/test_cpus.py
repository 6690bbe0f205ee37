"""How many processors a container may use."""

from bei.engines.cpus import available_cpus


def test_quota_bounds_the_count(tmp_path):
    quota = tmp_path / "cpu.max"
    unlimited = available_cpus(tmp_path / "absent")
    assert unlimited >= 1
    for text, expected in [("100000 100000", 1), ("150000 100000", min(2, unlimited)), ("1000 100000", 1)]:
        quota.write_text(text)
        assert available_cpus(quota) == expected
    quota.write_text("max 100000")
    assert available_cpus(quota) == unlimited
