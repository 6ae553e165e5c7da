"""No value of the cluster section can add a line or a command to a script, and mistakes are named."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_kis.common.configuration import parse_config
from megatron_kis.common.errors import InputError
from megatron_kis.config.slurm import ClusterConfig, seconds_of


def cluster(**content: Any) -> ClusterConfig:
    return parse_config(ClusterConfig, content, source="study")


SMUGGLED = "gpu\n#SBATCH --account=other"


@pytest.mark.parametrize(
    "content",
    [
        {"partition": SMUGGLED},
        {"account": "lab\nrm -rf /"},
        {"qos": "a b"},
        {"constraint": "h100\n#SBATCH --x"},
        {"constraint": "$(id)"},
        {"memory": "1G\n"},
        {"time_limit": "01:00:00\n#SBATCH --x"},
        {"gres": "gpu:1\n"},
        {"options": ["--exclusive\n#SBATCH --x"]},
        {"modules": ["cuda; rm -rf /"]},
        {"modules": ["cuda\n"]},
        {"environment": {"A; rm": "1"}},
        {"environment": {"A": "1\nrm -rf /"}},
        {"setup": ["source x\nrm -rf /"]},
        {"python": "python\n"},
        {"container": {"kind": "pyxis", "image": "a\nb"}},
        {"container": {"kind": "pyxis", "image": "a", "mounts": ["/a,/b"]}},
        {"container": {"kind": "pyxis", "image": "a", "mounts": ["relative"]}},
        {"small": {"partition": SMUGGLED}},
        {"large": {"options": ["rm -rf /"]}},
    ],
    ids=str,
)
def test_what_could_add_a_line_or_a_command_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        cluster(**content)


@pytest.mark.parametrize(
    "option", ["--array=0-9", "--output=x", "-o x", "--signal=B:TERM@5", "--no-requeue", "--wrap=id"]
)
def test_options_that_kis_sets_itself_are_refused(option: str) -> None:
    with pytest.raises(InputError, match="is set by kis"):
        cluster(options=[option])


def test_ordinary_settings_of_clusters_are_taken() -> None:
    section = cluster(
        account="lab-a",
        partition="gpu,gpu-long",
        qos="normal",
        constraint="[rack1|rack2]&h100",
        time_limit="2-00:00:00",
        memory="0",
        options=["--exclusive", "--mail-type=END,FAIL", "--comment='two words'"],
        gpus_per_node=8,
        gres="gpu:h100",
        modules=["cuda/12.4", "nccl/2.21+cuda12"],
        environment={"NCCL_IB_HCA": "mlx5_0:1,mlx5_1:1"},
        setup=["source /opt/env with spaces/activate"],
        container={"kind": "pyxis", "image": "nvcr.io#nvidia/pytorch:25.06-py3", "mounts": ["/data:/data:ro"]},
    )
    assert section.gpus_per_task == 1
    assert section.ranks_per_node == 8


def test_a_time_that_yaml_reads_as_a_number_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match="in quotes"):
        cluster(time_limit=43200)  # 12:00:00 without quotes


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("UNLIMITED", None),
        ("0", None),
        ("00:00:00", None),
        ("0-00", None),
        ("90", 5400),
        ("2:30", 150),
        ("12:00:00", 43200),
        ("1-6", 108000),
        ("1-06:30", 109800),
        ("2-00:00:01", 172801),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(limit: str, seconds: int | None) -> None:
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize("limit", ["UNLIMITED", "0", "0:00"])
def test_no_limit_is_longer_than_any_grace(limit: str) -> None:
    assert cluster(time_limit=limit, small={"time_limit": limit}).small.time_limit == limit


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"time_limit": "5"}, "not longer than grace_seconds"),
        ({"small": {"time_limit": "00:05:00"}}, "small"),
        ({"small": {"gpus": 1}}, "gpus_per_node"),
        ({"gpus_per_node": 4, "large": {"ranks_per_node": 8}}, "large.ranks_per_node is 8"),
        ({"time_limit": "forever"}, "a time, such as 12:00:00 or 2-00:00:00, or UNLIMITED"),
        ({"partitoin": "gpu"}, "did you mean 'partition'"),
    ],
)
def test_mistakes_are_named(content: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        cluster(**content)
